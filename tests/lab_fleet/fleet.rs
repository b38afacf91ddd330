//! The peers of `scripts/lab`: one process whose sockets are the fleet's real TCP stacks.
//!
//! | port | behaviour |
//! |---|---|
//! | 8080 | silent: never accepts, so a connection is ESTABLISHED and answers keepalives without costing a descriptor |
//! | 8081 | nothing listens (refused) |
//! | 8082 | accepts and closes at once (FIN) |
//! | 8083 | accepts, sends a line at once (at odd addresses ten of them) and one every second, stays open |
//! | 8084 | silent; `scripts/lab` rewrites the window of its segments to zero |
//! | 8085 | echo |
//!
//! A control socket takes one command a connection: `relisten`, `count`, `ping` or `stop`.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, bind,
    listen, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Ports where connections stay in the accept queue for ever.
const SILENT_PORTS: [u16; 2] = [8080, 8084];
/// Ports whose connections are accepted, and what is then done with them.
const ACCEPTING_PORTS: [(u16, Service); 3] =
    [(8082, Service::Close), (8083, Service::Talk), (8085, Service::Echo)];
/// Descriptors kept back for listeners, the control socket and the standard streams.
const RESERVED_FDS: usize = 64;
/// Longest wait for the other side of the control socket. Closing a listener with 65,536
/// connections in its queue takes well under a second.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(30);
const LINE: &[u8] = b"keepsweep lab: still talking\n";
/// How many lines those begin with who say much: in one segment, longer than an answer without data can be.
const GREETING_LINES: usize = 10;

/// Plays the peers of the lab.
#[derive(Parser)]
#[command(name = "lab-fleet")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Listens on every port of the fleet; prints "ready" once all do.
    Serve {
        /// Path of the control socket to create.
        #[arg(long)]
        control: PathBuf,
    },
    /// Sends one command to a running fleet and prints its answer.
    Ask {
        /// Path of the control socket.
        #[arg(long)]
        control: PathBuf,
        /// relisten | count | ping | stop
        command: String,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Serve { control } => Fleet::open(&control)?.serve(),
        Command::Ask { control, command } => ask(&control, &command),
    }
}

fn ask(control: &Path, command: &str) -> Result<()> {
    let mut stream = UnixStream::connect(control)
        .with_context(|| format!("connect to the fleet at {}", control.display()))?;
    stream.set_read_timeout(Some(CONTROL_TIMEOUT))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the fleet's answer")?;
    match answer.strip_prefix("error: ") {
        Some(error) => bail!("fleet: {}", error.trim_end()),
        None => print!("{answer}"),
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Service {
    Close,
    Talk,
    Echo,
}

/// What a registered descriptor is.
enum Source {
    Listener(TcpListener, Service),
    Connection(Connection),
    Control(UnixListener),
    Tick(TimerFd),
}

struct Connection {
    stream: TcpStream,
    service: Service,
    /// Octets read but not yet echoed. While any are left nothing more is read.
    unsent: Vec<u8>,
}

#[derive(PartialEq, Eq)]
enum Fate {
    Keep,
    Close,
}

struct Fleet {
    epoll: Epoll,
    sources: HashMap<RawFd, Source>,
    /// Never in `epoll`: nobody accepts from them.
    silent: Vec<OwnedFd>,
    connections: usize,
    max_connections: usize,
    /// Listeners are out of `epoll` because `max_connections` is reached.
    full: bool,
    /// Connections closed at once so far (port 8082).
    closed: u64,
    stop: bool,
}

impl Fleet {
    fn open(control: &Path) -> Result<Fleet> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
                .context("raise the limit of open files")?;
        }
        let mut fleet = Fleet {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            sources: HashMap::new(),
            silent: open_silent()?,
            connections: 0,
            max_connections: usize::try_from(hard)
                .unwrap_or(usize::MAX)
                .saturating_sub(RESERVED_FDS),
            full: false,
            closed: 0,
            stop: false,
        };
        for (port, service) in ACCEPTING_PORTS {
            for fd in listen_on(port)? {
                let listener = TcpListener::from(fd);
                fleet.register(listener.as_raw_fd(), Source::Listener(listener, service))?;
            }
        }
        let tick = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        tick.set(
            Expiration::Interval(TimeSpec::from_duration(Duration::from_secs(1))),
            TimerSetTimeFlags::empty(),
        )?;
        fleet.register(tick.as_fd().as_raw_fd(), Source::Tick(tick))?;

        // A fleet that was killed leaves its socket behind, and bind refuses an existing path.
        match std::fs::remove_file(control) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove stale {}", control.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(control)
            .with_context(|| format!("bind control socket {}", control.display()))?;
        fleet.register(listener.as_raw_fd(), Source::Control(listener))?;
        Ok(fleet)
    }

    fn register(&mut self, fd: RawFd, source: Source) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, fd as u64);
        match &source {
            Source::Listener(listener, _) => self.epoll.add(listener, event)?,
            Source::Connection(connection) => self.epoll.add(&connection.stream, event)?,
            Source::Control(listener) => self.epoll.add(listener, event)?,
            Source::Tick(timer) => self.epoll.add(timer, event)?,
        }
        self.sources.insert(fd, source);
        Ok(())
    }

    fn serve(mut self) -> Result<()> {
        println!("ready");
        let mut events = vec![EpollEvent::empty(); 1024];
        while !self.stop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("wait for events"),
            };
            for event in &events[..ready] {
                self.handle(event.data() as RawFd)?;
            }
        }
        Ok(())
    }

    fn handle(&mut self, fd: RawFd) -> Result<()> {
        // Taken out while it is served, so that serving it may change the map. None: closed
        // earlier in this batch of events.
        let Some(mut source) = self.sources.remove(&fd) else { return Ok(()) };
        let fate = match &mut source {
            Source::Listener(listener, service) => {
                self.accept_all(listener, *service)?;
                Fate::Keep
            }
            Source::Connection(connection) => {
                let fate = connection.handle_ready();
                if fate == Fate::Keep {
                    self.epoll.modify(&connection.stream, &mut connection.interest(fd))?;
                }
                fate
            }
            Source::Control(listener) => {
                if let Ok((stream, _)) = listener.accept()
                    && let Err(error) = self.answer(stream)
                {
                    eprintln!("lab-fleet: control: {error:#}");
                }
                Fate::Keep
            }
            Source::Tick(timer) => {
                timer.wait()?;
                self.talk();
                Fate::Keep
            }
        };
        match fate {
            Fate::Keep => drop(self.sources.insert(fd, source)),
            Fate::Close => {
                drop(source);
                self.connections -= 1;
            }
        }
        // Only now is every listener back in the map.
        self.throttle()
    }

    /// Accepts until the queue is empty or the descriptors run out; the rest waits in the queue,
    /// established and answering keepalives.
    fn accept_all(&mut self, listener: &TcpListener, service: Service) -> Result<()> {
        while self.connections < self.max_connections {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    eprintln!("lab-fleet: accept for {service:?}: {error}");
                    break;
                }
            };
            if service == Service::Close {
                self.closed += 1;
                continue;
            }
            stream.set_nonblocking(true)?;
            let mut connection = Connection { stream, service, unsent: Vec::new() };
            if service == Service::Talk && connection.greet() == Fate::Close {
                continue;
            }
            self.connections += 1;
            self.register(connection.stream.as_raw_fd(), Source::Connection(connection))?;
        }
        Ok(())
    }

    /// Stops listening for accepts while no descriptor is free (a level-triggered listener would
    /// spin) and resumes when one is.
    fn throttle(&mut self) -> Result<()> {
        let full = self.connections >= self.max_connections;
        if full == self.full {
            return Ok(());
        }
        self.full = full;
        let interest = if full { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        for (fd, source) in &self.sources {
            if let Source::Listener(listener, _) = source {
                self.epoll.modify(listener, &mut EpollEvent::new(interest, *fd as u64))?;
            }
        }
        Ok(())
    }

    fn talk(&mut self) {
        let before = self.sources.len();
        self.sources.retain(|_, source| match source {
            Source::Connection(connection) if connection.service == Service::Talk => {
                connection.talk() == Fate::Keep
            }
            _ => true,
        });
        self.connections -= before - self.sources.len();
    }

    fn answer(&mut self, stream: UnixStream) -> Result<()> {
        stream.set_read_timeout(Some(CONTROL_TIMEOUT))?;
        let mut command = String::new();
        BufReader::new(&stream).read_line(&mut command)?;
        let answer = match command.trim() {
            "relisten" => match self.relisten() {
                Ok(()) => "relistening\n".to_owned(),
                Err(error) => format!("error: relisten: {error:#}\n"),
            },
            "count" => self.count(),
            "ping" => "pong\n".to_owned(),
            "stop" => {
                self.stop = true;
                "stopping\n".to_owned()
            }
            other => format!("error: unknown command {other:?}\n"),
        };
        (&stream).write_all(answer.as_bytes())?;
        Ok(())
    }

    /// Replaces the silent listeners, which frees every connection in their queues. Those still
    /// established are reset by the kernel.
    fn relisten(&mut self) -> Result<()> {
        // The new ones first (SO_REUSEPORT): at no moment would a SYN be refused.
        self.silent = open_silent()?;
        Ok(())
    }

    fn count(&self) -> String {
        let of = |wanted: Service| {
            self.sources
                .values()
                .filter(|s| matches!(s, Source::Connection(c) if c.service == wanted))
                .count()
        };
        format!(
            "closed {} talk {} echo {} limit {}\n",
            self.closed,
            of(Service::Talk),
            of(Service::Echo),
            self.max_connections
        )
    }
}

impl Connection {
    fn interest(&self, fd: RawFd) -> EpollEvent {
        let flags = if self.unsent.is_empty() { EpollFlags::EPOLLIN } else { EpollFlags::EPOLLOUT };
        EpollEvent::new(flags, fd as u64)
    }

    /// Reads what is there, echoes it if that is the service, and closes at end or error.
    fn handle_ready(&mut self) -> Fate {
        if !self.unsent.is_empty() && self.flush() == Fate::Close {
            return Fate::Close;
        }
        let mut octets = [0u8; 4096];
        // Level-triggered: whatever is left after one read is reported again.
        if self.unsent.is_empty() {
            match self.stream.read(&mut octets) {
                Ok(0) => return Fate::Close,
                Ok(len) if self.service == Service::Echo => {
                    self.unsent.extend_from_slice(&octets[..len]);
                    return self.flush();
                }
                Ok(_) => {}
                Err(error) if is_transient(&error) => {}
                Err(_) => return Fate::Close,
            }
        }
        Fate::Keep
    }

    fn flush(&mut self) -> Fate {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(len) => drop(self.unsent.drain(..len)),
                Err(error) if is_transient(&error) => break,
                Err(_) => return Fate::Close,
            }
        }
        Fate::Keep
    }

    fn greet(&mut self) -> Fate {
        let last = match self.stream.local_addr().map(|address| address.ip()) {
            Ok(IpAddr::V4(ip)) => ip.octets()[3],
            Ok(IpAddr::V6(ip)) => ip.octets()[15],
            Err(_) => return Fate::Close,
        };
        let lines = if last.is_multiple_of(2) { 1 } else { GREETING_LINES };
        self.say(&LINE.repeat(lines))
    }

    fn talk(&mut self) -> Fate {
        self.say(LINE)
    }

    /// Sends `words`; a peer whose window is full simply misses them.
    fn say(&mut self, words: &[u8]) -> Fate {
        match self.stream.write(words) {
            Ok(_) => Fate::Keep,
            Err(error) if is_transient(&error) => Fate::Keep,
            Err(_) => Fate::Close,
        }
    }
}

fn is_transient(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn open_silent() -> Result<Vec<OwnedFd>> {
    let mut sockets = Vec::new();
    for port in SILENT_PORTS {
        sockets.extend(listen_on(port)?);
    }
    Ok(sockets)
}

/// Listens on `port` with one socket per family: a dual-stack socket would make IPv4 connections
/// take the slower mapped-address code of the kernel.
fn listen_on(port: u16) -> Result<[OwnedFd; 2]> {
    let open = |family| -> Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        if family == AddressFamily::Inet6 {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
            let any = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
            bind(fd.as_raw_fd(), &any)?;
        } else {
            let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
            bind(fd.as_raw_fd(), &any)?;
        }
        // −1: whatever net.core.somaxconn allows (net/socket.c compares as unsigned).
        listen(&fd, Backlog::MAXALLOWABLE)?;
        Ok(fd)
    };
    let context = || format!("listen on port {port}");
    Ok([
        open(AddressFamily::Inet).with_context(context)?,
        open(AddressFamily::Inet6).with_context(context)?,
    ])
}
