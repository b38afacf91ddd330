//! A connection that is held, and what this end does with it.
#![forbid(unsafe_code)]

use crate::group::{Condition, Group};
use crate::open;
use crate::options;
use crate::stream::Stream;
use anyhow::Result;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::rc::Rc;

/// What this end does.
#[derive(Debug)]
pub enum Part {
    /// Nothing at all.
    Hold,
    /// Reads and forgets.
    Drain,
    /// Sends back what comes.
    Echo {
        /// Read, and not sent back yet.
        unsent: Vec<u8>,
    },
    /// Sends, and sends again once all has come back.
    Ping(Box<Ping>),
    /// Writes for as long as there is room.
    Fill,
    /// Sends and takes bursts.
    Stream(Box<Stream>),
    /// Reads until the other end closes, and closes.
    Follow,
    /// Now and then closes, with FIN or RST, and opens the connection anew.
    Reopen { group: Rc<Group>, index: usize, rng: fastrand::Rng },
}

/// A conversation with an end that echoes.
#[derive(Debug)]
pub struct Ping {
    rng: fastrand::Rng,
    /// Sent, and not come back yet.
    awaited: Vec<u8>,
    rounds: u64,
    is_corrupt: bool,
}

impl Ping {
    pub fn new(seed: u64) -> Ping {
        let rng = fastrand::Rng::with_seed(seed);
        Ping { rng, awaited: Vec::new(), rounds: 0, is_corrupt: false }
    }
}

impl Part {
    /// Whether it is to be told that there is something to read.
    pub fn reads(&self) -> bool {
        !matches!(self, Part::Hold | Part::Fill | Part::Reopen { .. })
    }

    /// Whether it is to be told that time passes.
    pub fn acts(&self) -> bool {
        !matches!(self, Part::Hold | Part::Drain | Part::Follow)
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// Its place in the list of names.
    pub group: usize,
    pub stream: TcpStream,
    /// The other end: a socket that is closed has none.
    pub peer: SocketAddr,
    pub part: Part,
    /// The first error that it had.
    pub error: Option<String>,
}

impl Connection {
    /// Does what there is to do when something can be read; false once nothing will be any more.
    pub fn handle_readable(&mut self) -> bool {
        if let Part::Stream(stream) = &mut self.part {
            return stream.read(&self.stream);
        }
        let mut octets = [0; 4096];
        let came = match self.stream.read(&mut octets) {
            Ok(0) => {
                if matches!(self.part, Part::Follow) {
                    // Whether it still stands is the other end's affair.
                    let _ = self.stream.shutdown(Shutdown::Both);
                }
                return false;
            }
            Ok(len) => &octets[..len],
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(error) => {
                self.error.get_or_insert_with(|| error_name(&error));
                return false;
            }
        };
        match &mut self.part {
            Part::Echo { unsent } => {
                unsent.extend_from_slice(came);
                write_some(&self.stream, unsent, &mut self.error);
            }
            Part::Ping(ping) => {
                ping.is_corrupt |= !ping.awaited.starts_with(came);
                ping.awaited.drain(..came.len().min(ping.awaited.len()));
                ping.rounds += u64::from(ping.awaited.is_empty());
            }
            Part::Hold
            | Part::Drain
            | Part::Fill
            | Part::Stream(_)
            | Part::Follow
            | Part::Reopen { .. } => {}
        }
        true
    }

    /// Does what time demands: `is_turn` once in a while.
    pub fn tick(&mut self, is_turn: bool, finishing: bool) -> Result<()> {
        match &mut self.part {
            Part::Echo { unsent } => write_some(&self.stream, unsent, &mut self.error),
            Part::Ping(ping) if is_turn && ping.awaited.is_empty() && self.error.is_none() => {
                let mut message = vec![0; ping.rng.usize(1..=1000)];
                ping.rng.fill(&mut message);
                ping.awaited.clone_from(&message);
                // So little fits in any send buffer.
                write_some(&self.stream, &mut message, &mut self.error);
                ping.is_corrupt |= !message.is_empty() && self.error.is_none();
            }
            Part::Fill if is_turn => self.fill(),
            Part::Stream(stream) => stream.tick(&self.stream, finishing),
            Part::Reopen { group, index, rng } if is_turn => {
                if rng.u8(0..8) > 0 {
                    return Ok(());
                }
                if rng.bool() {
                    let reset = libc::linger { l_onoff: 1, l_linger: 0 };
                    setsockopt(&self.stream, sockopt::Linger, &reset)?;
                }
                let (group, index, rng) = (group.clone(), *index, rng.clone());
                *self = open::connect(&group, self.group, index)?;
                self.part = Part::Reopen { group, index, rng };
            }
            Part::Hold
            | Part::Drain
            | Part::Ping(_)
            | Part::Fill
            | Part::Follow
            | Part::Reopen { .. } => {}
        }
        Ok(())
    }

    /// Writes until there is no room.
    pub fn fill(&mut self) {
        for _ in 0..1024 {
            let mut octets = vec![b'.'; 4096];
            write_some(&self.stream, &mut octets, &mut self.error);
            if !octets.is_empty() {
                break;
            }
        }
    }

    /// Says something, if this end may still speak and is not speaking anyway.
    pub fn say(&mut self) -> bool {
        let speaks = matches!(self.part, Part::Hold | Part::Drain);
        let may = options::info(&self.stream).is_ok_and(|info| matches!(info.state, 1 | 8));
        let mut octets = vec![b'!'; 16];
        if speaks && may {
            write_some(&self.stream, &mut octets, &mut self.error);
        }
        octets.is_empty()
    }

    /// Whether the connection is in the condition of its group.
    pub fn stands(&self, groups: &[Rc<Group>]) -> bool {
        let Ok(info) = options::info(&self.stream) else { return false };
        let is_quiet = info.unacked == 0 && info.notsent_bytes == 0;
        match groups[self.group].condition {
            Condition::Idle | Condition::Signed => info.state == 1 && is_quiet,
            Condition::Busy => matches!(&self.part, Part::Ping(ping) if ping.rounds >= 2),
            Condition::CloseWait => info.state == 8 && is_quiet,
            Condition::FinWait2 => info.state == 5,
            Condition::ZeroWindow => {
                info.snd_wnd == 0 && info.unacked == 0 && info.notsent_bytes > 0
            }
            Condition::Unread => info.rcv_wnd == 0 && is_quiet,
            Condition::Stream | Condition::Brief => info.state == 1,
        }
    }

    /// Says all that is known of the connection; `names` are those of the groups.
    pub fn describe(&mut self, names: &[String]) -> Result<Value> {
        let pending = getsockopt(&self.stream, sockopt::SocketError)?;
        if pending != 0 {
            self.error.get_or_insert_with(|| format!("{:?}", Errno::from_raw(pending)));
        }
        let info = options::info(&self.stream)?;
        Ok(json!({
            "group": names[self.group],
            "local": unmapped(self.stream.local_addr()?).to_string(),
            "peer": unmapped(self.peer).to_string(),
            "cookie": options::cookie(&self.stream)?,
            "state": state_name(info.state),
            "error": self.error,
            "since_ack_ms": info.last_ack_recv_ms,
            "unacknowledged": info.unacked + info.notsent_bytes > 0,
            "corrupt": matches!(&self.part, Part::Ping(ping) if ping.is_corrupt),
        }))
    }

    /// Reports both directions of a stream.
    pub fn report(&self) -> Option<Value> {
        let Part::Stream(stream) = &self.part else { return None };
        let mut report = stream.report();
        let local = self.stream.local_addr().ok();
        report["local"] = local.map(|local| unmapped(local).to_string()).into();
        report["peer"] = unmapped(self.peer).to_string().into();
        Some(report)
    }
}

/// Writes what fits and keeps the rest.
fn write_some(mut stream: &TcpStream, unsent: &mut Vec<u8>, failure: &mut Option<String>) {
    if unsent.is_empty() {
        return;
    }
    match stream.write(unsent) {
        Ok(len) => drop(unsent.drain(..len)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(error) => {
            failure.get_or_insert_with(|| error_name(&error));
        }
    }
}

/// Returns what the kernel calls an error, such as ECONNRESET.
pub fn error_name(error: &std::io::Error) -> String {
    error
        .raw_os_error()
        .map_or(error.to_string(), |number| format!("{:?}", Errno::from_raw(number)))
}

fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Returns the name of a state (include/net/tcp_states.h).
fn state_name(state: u8) -> &'static str {
    const NAMES: [&str; 12] = [
        "?",
        "established",
        "syn-sent",
        "syn-received",
        "fin-wait-1",
        "fin-wait-2",
        "time-wait",
        "closed",
        "close-wait",
        "last-ack",
        "listen",
        "closing",
    ];
    NAMES.get(usize::from(state)).copied().unwrap_or("?")
}
