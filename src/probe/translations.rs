//! Flows that have other ends on the wire than their sockets have: this host translates them itself.
//!
//! The flow table knows a flow by the ends of its socket. Receivers of what comes from outside ask here
//! first; on the loopback packets have the socket's ends.
#![forbid(unsafe_code)]

use crate::probe::host::Wire;
use crate::probe::table::FlowKey;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// Which flow's packets have which ends on the wire, shared by senders and receivers.
#[derive(Debug, Default)]
pub struct Translations {
    /// Ends on the wire, to ends of the socket.
    sockets: RwLock<HashMap<FlowKey, FlowKey>>,
    /// Whether there was ever any: nearly always there is none.
    is_any: AtomicBool,
}

impl Translations {
    /// Notes that the packets of `socket` have the ends `now` on the wire, instead of those `before`.
    pub fn note(&self, socket: FlowKey, before: Wire, now: Wire) {
        if before == now {
            return;
        }
        let mut sockets = self.sockets.write().unwrap_or_else(PoisonError::into_inner);
        if let Wire::Other(wire) = before {
            sockets.remove(&wire);
        }
        if let Wire::Other(wire) = now {
            sockets.insert(wire, socket);
            // Release, with the Acquire below: whoever sees it waits for the lock, and finds the entry.
            self.is_any.store(true, Ordering::Release);
        }
    }

    /// Returns the ends of the socket whose packets have the ends `wire` on the wire: the same, unless
    /// it is known better.
    #[inline]
    pub fn socket_of(&self, wire: FlowKey) -> FlowKey {
        if !self.is_any.load(Ordering::Acquire) {
            return wire;
        }
        let sockets = self.sockets.read().unwrap_or_else(PoisonError::into_inner);
        sockets.get(&wire).copied().unwrap_or(wire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_translated_otherwise_is_no_longer_what_it_was() {
        let key = |port: u16| FlowKey {
            local: ([10, 0, 0, 1], port).into(),
            peer: ([10, 0, 0, 2], 80).into(),
        };
        let translations = Translations::default();
        assert_eq!(translations.socket_of(key(5)), key(5));
        translations.note(key(1), Wire::Same, Wire::Other(key(5)));
        translations.note(key(2), Wire::Unknown, Wire::Other(key(6)));
        assert_eq!([5, 6, 1].map(|port| translations.socket_of(key(port))), [1, 2, 1].map(key));
        translations.note(key(1), Wire::Other(key(5)), Wire::Other(key(7)));
        assert_eq!([5, 7].map(|port| translations.socket_of(key(port))), [5, 1].map(key));
        translations.note(key(1), Wire::Other(key(7)), Wire::Same);
        assert_eq!([6, 7].map(|port| translations.socket_of(key(port))), [2, 7].map(key));
    }
}
