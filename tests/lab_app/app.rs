//! The applications of the audit lab: one process that holds thousands of real connections, each in a
//! stated condition, and touches none of them but as that condition demands.
//!
//! `lab-app serve` plays the peers, `lab-app connect` opens groups of connections to them. Either end
//! may be the audited one. What the server does is chosen by port (see `group.rs`), and so is
//! whether it greets first.
//!
//! Prints `ready N` once N connections stand as stated (`ready 0` once it listens). Then answers commands, a line
//! each, with one line of JSON; the end of standard input is the end of the process.
//!
//! | command | answer |
//! |---|---|
//! | `list` | every connection: group, ends, cookie, state, error, how long ago an ACK came, octets not acknowledged, whether it got back other octets than it sent |
//! | `say` | writes 16 octets on every connection that may still write and is not at it anyway |
//! | `arm IDLE INTERVAL COUNT` | switches the kernel's own keepalive on, in seconds: the second opinion |
//! | `mute` | closes the listeners: who asks after that is refused |
//! | `finish` | ends the streams and, when every one has ended, reports both directions of each |

mod connection;
mod group;
mod open;
mod options;
mod stream;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use connection::{Connection, Part};
use group::{Group, Manner};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

const TICK: Duration = Duration::from_millis(10);
/// A connection of these says something every so many ticks.
const PING_TICKS: u64 = 20;
/// Longest wait for the stated conditions, and for streams to end.
const PATIENCE_TICKS: u64 = 6000;
const STDIN: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
/// Listeners have the tokens from here on.
const LISTENERS: u64 = 1 << 32;

/// Holds connections in stated conditions.
#[derive(Parser)]
#[command(name = "lab-app")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Listens and does with each connection what its port says.
    Serve {
        /// First port.
        #[arg(long, default_value_t = 9100)]
        port: u16,
        /// One dual-stack socket a port: IPv4 arrives v4-mapped.
        #[arg(long)]
        mapped: bool,
    },
    /// Opens groups of connections and holds them.
    Connect {
        /// The groups: a JSON array (see `group.rs`).
        #[arg(long)]
        groups: PathBuf,
    },
}

fn main() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")?;
    }
    let mut holder = Holder::new()?;
    match Args::parse().command {
        Command::Serve { port, mapped } => holder.listen(port, mapped)?,
        Command::Connect { groups } => {
            let text = std::fs::read(&groups)
                .with_context(|| format!("read groups from {}", groups.display()))?;
            let groups: Vec<Rc<Group>> = serde_json::from_slice::<Vec<Group>>(&text)
                .with_context(|| format!("parse groups of {}", groups.display()))?
                .into_iter()
                .map(Rc::new)
                .collect();
            holder.connect(&groups)?;
        }
    }
    holder.serve()
}

struct Holder {
    epoll: Epoll,
    timer: TimerFd,
    ticks: u64,
    names: Vec<String>,
    connections: Vec<Connection>,
    /// Those that act with time.
    active: Vec<usize>,
    listeners: Vec<(TcpListener, Manner, bool)>,
    /// What has been read of a command.
    input: Vec<u8>,
    finishing: bool,
    ended: bool,
}

impl Holder {
    fn new() -> Result<Holder> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        timer
            .set(Expiration::Interval(TimeSpec::from_duration(TICK)), TimerSetTimeFlags::empty())?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let stdin = std::io::stdin();
        epoll
            .add(stdin.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, STDIN))
            .context("watch standard input, which must be a pipe or a terminal")?;
        Ok(Holder {
            epoll,
            timer,
            ticks: 0,
            names: Vec::new(),
            connections: Vec::new(),
            active: Vec::new(),
            listeners: Vec::new(),
            input: Vec::new(),
            finishing: false,
            ended: false,
        })
    }

    fn listen(&mut self, port: u16, mapped: bool) -> Result<()> {
        for manner in Manner::ALL {
            for greets in [false, true] {
                for listener in open::listeners(manner.port(port, greets), manner, mapped)? {
                    let token = LISTENERS + self.listeners.len() as u64;
                    self.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
                    self.listeners.push((listener, manner, greets));
                }
            }
            self.names.push(manner.name().to_owned());
        }
        Ok(())
    }

    fn connect(&mut self, groups: &[Rc<Group>]) -> Result<()> {
        for (number, group) in groups.iter().enumerate() {
            self.names.push(group.name.clone());
            for index in 0..group.count {
                let connection = open::connect(group, number, index)
                    .with_context(|| format!("connection {index} of group {}", group.name))?;
                self.hold(connection)?;
            }
        }
        let mut waiting: Vec<usize> = (0..self.connections.len()).collect();
        while !waiting.is_empty() {
            if self.ticks > PATIENCE_TICKS {
                let some = &self.connections[waiting[0]];
                bail!(
                    "{} connections do not stand as stated, such as {some:?} of group {}",
                    waiting.len(),
                    self.names[some.group]
                );
            }
            self.turn()?;
            waiting.retain(|&at| !self.connections[at].stands(groups));
        }
        Ok(())
    }

    fn hold(&mut self, connection: Connection) -> Result<()> {
        let token = self.connections.len();
        if connection.part.reads() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token as u64);
            self.epoll.add(&connection.stream, event)?;
        }
        if connection.part.acts() {
            self.active.push(token);
        }
        self.connections.push(connection);
        Ok(())
    }

    fn serve(mut self) -> Result<()> {
        println!("ready {}", self.connections.len());
        while !self.ended {
            self.turn()?;
        }
        Ok(())
    }

    /// Waits for something to happen and does what it demands.
    fn turn(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error).context("wait for events"),
        };
        for event in &events[..ready] {
            match event.data() {
                STDIN => self.read_commands()?,
                TIMER => {
                    self.timer.wait()?;
                    self.tick()?;
                }
                token if token >= LISTENERS => self.accept((token - LISTENERS) as usize)?,
                token => {
                    let connection = &mut self.connections[token as usize];
                    if !connection.handle_readable() {
                        // Ended: level-triggered, it would be reported for ever. It stays open.
                        self.epoll.delete(&connection.stream)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<()> {
        self.ticks += 1;
        for &at in &self.active {
            let is_turn = at as u64 % PING_TICKS == self.ticks % PING_TICKS;
            self.connections[at].tick(is_turn, self.finishing)?;
        }
        if self.finishing && self.streams().all(|stream| stream.is_over()) {
            self.finishing = false;
            let streams: Vec<Value> = self.connections.iter().filter_map(|c| c.report()).collect();
            answer(&json!({ "streams": streams }))?;
        }
        Ok(())
    }

    fn streams(&self) -> impl Iterator<Item = &stream::Stream> {
        self.connections.iter().filter_map(|connection| match &connection.part {
            Part::Stream(stream) => Some(&**stream),
            _ => None,
        })
    }

    fn accept(&mut self, at: usize) -> Result<()> {
        // Bounded, so that no listener holds up the others.
        for _ in 0..64 {
            let (listener, manner, greets) = &self.listeners[at];
            let (manner, greets) = (*manner, *greets);
            match listener.accept() {
                Ok((stream, peer)) => {
                    let connection = open::accepted(stream, peer, manner, greets)?;
                    self.hold(connection)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error).context("accept"),
            }
        }
        Ok(())
    }

    fn read_commands(&mut self) -> Result<()> {
        let mut octets = [0; 256];
        let len = std::io::stdin().lock().read(&mut octets).context("read a command")?;
        self.ended |= len == 0;
        self.input.extend_from_slice(&octets[..len]);
        while let Some(end) = self.input.iter().position(|octet| *octet == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            self.obey(String::from_utf8_lossy(&line).trim())?;
        }
        Ok(())
    }

    fn obey(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["list"] => {
                let list: Result<Vec<Value>> =
                    self.connections.iter_mut().map(|c| c.describe(&self.names)).collect();
                answer(&json!({ "connections": list? }))
            }
            ["say"] => {
                let said = self.connections.iter_mut().map(|c| usize::from(c.say())).sum::<usize>();
                answer(&json!({ "said": said }))
            }
            ["arm", idle, interval, count] => {
                let parse = |word: &str| word.parse().context("arm: seconds, seconds, a count");
                let (idle, interval, count) = (parse(idle)?, parse(interval)?, parse(count)?);
                for connection in &self.connections {
                    options::arm(&connection.stream, idle, interval, count)?;
                }
                answer(&json!({ "armed": self.connections.len() }))
            }
            ["mute"] => {
                let closed = self.listeners.len();
                self.listeners.clear();
                answer(&json!({ "closed": closed }))
            }
            ["finish"] => {
                self.finishing = true;
                Ok(())
            }
            [] => Ok(()),
            _ => bail!("unknown command {line:?}"),
        }
    }
}

fn answer(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").context("answer")?;
    out.flush().context("answer")
}
