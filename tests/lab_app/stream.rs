//! A stream of bursts: what was sent and what came in, hashed at each end.
#![forbid(unsafe_code)]

use crate::connection::error_name;
use serde_json::{Value, json};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

/// Octets in a burst, at most.
const BURST: usize = 64 << 10;
/// Ticks between bursts, at most.
const PAUSE_TICKS: u64 = 10;

/// One end of a stream.
#[derive(Debug)]
pub struct Stream {
    rng: fastrand::Rng,
    /// What of the burst has not been sent.
    unsent: Vec<u8>,
    pause: u64,
    sent: u64,
    received: u64,
    hash_sent: SipHasher13,
    hash_received: SipHasher13,
    /// Whether this end speaks until it is told to stop; the other stops when it does.
    leads: bool,
    has_shut: bool,
    has_ended: bool,
    error: Option<String>,
}

impl Stream {
    pub fn new(seed: u64, leads: bool) -> Stream {
        Stream {
            rng: fastrand::Rng::with_seed(seed),
            unsent: Vec::new(),
            pause: 0,
            sent: 0,
            received: 0,
            hash_sent: SipHasher13::new(),
            hash_received: SipHasher13::new(),
            leads,
            has_shut: false,
            has_ended: false,
            error: None,
        }
    }

    pub fn is_over(&self) -> bool {
        self.error.is_some() || (self.has_shut && self.has_ended)
    }

    /// Reads what is there; false at the end.
    pub fn read(&mut self, mut stream: &TcpStream) -> bool {
        let mut octets = [0; 32 << 10];
        match stream.read(&mut octets) {
            Ok(0) => self.has_ended = true,
            Ok(len) => {
                self.received += len as u64;
                self.hash_received.write(&octets[..len]);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.error = Some(error_name(&error)),
        }
        !self.has_ended && self.error.is_none()
    }

    /// Sends on, or begins another burst after a pause.
    pub fn tick(&mut self, mut stream: &TcpStream, finishing: bool) {
        if self.has_shut || self.error.is_some() {
            return;
        }
        if self.unsent.is_empty() {
            let is_last = if self.leads { finishing } else { self.has_ended };
            if is_last {
                self.has_shut = true;
                if let Err(error) = stream.shutdown(Shutdown::Write) {
                    self.error = Some(error_name(&error));
                }
                return;
            }
            if self.pause > 0 {
                self.pause -= 1;
                return;
            }
            self.pause = self.rng.u64(0..=PAUSE_TICKS);
            // Of every size, down to a single octet: small ones leave single segments in flight.
            let len = self.rng.usize(0..BURST) >> self.rng.u32(0..8);
            self.unsent = vec![0; len.max(1)];
            self.rng.fill(&mut self.unsent);
        }
        match stream.write(&self.unsent) {
            Ok(len) => {
                self.hash_sent.write(&self.unsent[..len]);
                self.sent += len as u64;
                self.unsent.drain(..len);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.error = Some(error_name(&error)),
        }
    }

    pub fn report(&self) -> Value {
        json!({
            "sent": self.sent, "received": self.received,
            "hash_sent": format!("{:016x}", self.hash_sent.finish()),
            "hash_received": format!("{:016x}", self.hash_received.finish()),
            "error": self.error,
        })
    }
}
