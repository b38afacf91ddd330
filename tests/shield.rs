//! The shield: what would end a connection is kept from its socket, and nothing else is.

#![cfg(feature = "os")]

mod netns;

use keepsweep::io::host::cookie_of;
use keepsweep::io::privilege;
use keepsweep::io::shield::Shield;
use netns::in_namespace;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

struct Pair {
    ours: TcpStream,
    theirs: TcpStream,
}

impl Pair {
    fn new(address: &str) -> Pair {
        let listener = TcpListener::bind(address).expect("listen");
        let ours = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
        let (theirs, _) = listener.accept().expect("accept");
        ours.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        Pair { ours, theirs }
    }

    fn cookie(&self) -> u64 {
        cookie_of(self.ours.as_fd()).expect("a cookie")
    }

    /// Octets come through.
    fn assert_hears(&mut self) {
        self.theirs.write_all(b"hello").expect("write");
        self.ours.read_exact(&mut [0; 5]).expect("read");
    }

    /// The peer resets the connection; returns ours, which has got that by now: the loopback is fast.
    fn reset(self) -> TcpStream {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.theirs, sockopt::Linger, &linger).expect("SO_LINGER");
        drop(self.theirs);
        self.ours
    }
}

fn is_reset(ours: &TcpStream) -> bool {
    ours.set_nonblocking(true).expect("nonblocking");
    match (&mut &*ours).read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn held_sockets_survive_a_reset_and_others_do_not() {
    in_namespace(|| {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let [mut held, mut let_go, mut other] = [(); 3].map(|()| Pair::new(address));
            let [ours, again] = [(); 2].map(|()| Shield::open().expect("root"));
            let cookies = [held.cookie(), let_go.cookie()];
            // By whom has no privilege any more, as in a sweep.
            let ours = std::thread::spawn(move || {
                privilege::drop_all().expect("dropped");
                cookies.iter().for_each(|&cookie| ours.hold(cookie).expect("held"));
                // Twice is once.
                ours.hold(cookies[1]).expect("held");
                ours.let_go(cookies[1]);
                ours
            });
            let ours = ours.join().expect("it ends");
            // By another sweep as well.
            again.hold(cookies[0]).expect("held");
            drop(again);
            for pair in [&mut held, &mut let_go, &mut other] {
                pair.assert_hears();
            }
            assert!(is_reset(&other.reset()));
            assert!(is_reset(&let_go.reset()));
            let held = held.reset();
            assert!(!is_reset(&held), "{address}");
            assert_eq!(ours.reset(cookies[0]), None, "the peer's own, with ACK, is no answer");
        }
    });
}

#[test]
fn the_shield_goes_with_the_last_that_has_it() {
    in_namespace(|| {
        let mut pair = Pair::new("127.0.0.1:0");
        let cookie = pair.cookie();
        let [first, second] = [(); 2].map(|()| Shield::open().expect("root"));
        first.hold(cookie).expect("held");
        drop(second);
        drop(first);
        pair.assert_hears();
        assert!(is_reset(&pair.reset()));
    });
}
