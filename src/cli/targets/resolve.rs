//! Host names → addresses, by the system's resolver.
#![forbid(unsafe_code)]

use crate::time::Clock;
use crossbeam::channel::{self, RecvTimeoutError};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Look-ups under way at once. Each is a query or two that wait on the network, or, where the
/// resolver does not answer, ten seconds of silence.
const AT_ONCE: usize = 64;
/// After this long the user is told what is being waited for, and again at every [`AGAIN`].
const PATIENCE: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(10);

/// What a look-up came to.
pub type Found = io::Result<Vec<SocketAddr>>;

/// Every name with its addresses, or why there are none.
#[derive(Debug)]
pub struct Resolved<'a> {
    /// Ascending by name.
    found: Vec<(&'a str, Found)>,
}

impl Resolved<'_> {
    /// Returns what was found for a name.
    pub fn get(&self, name: &str) -> Option<&Found> {
        let index = self.found.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
        Some(&self.found[index].1)
    }
}

/// Resolves every name once, a bounded number at a time, to all its addresses in the resolver's
/// order; calls `waiting` now and then with how many names are done, and of how many.
///
/// # Errors
/// No thread can be started.
pub fn resolve<'a>(
    names: impl Iterator<Item = &'a str>,
    look_up: impl Fn(&str) -> Found + Sync,
    waiting: &mut dyn FnMut(usize, usize),
) -> io::Result<Resolved<'a>> {
    let mut pending: Vec<&str> = names.collect();
    pending.sort_unstable();
    pending.dedup();
    let mut found: Vec<Option<Found>> = pending.iter().map(|_| None).collect();
    let next = AtomicUsize::new(0);
    let (results, results_in) = channel::unbounded();
    let work = |results: channel::Sender<_>| {
        // Relaxed: the counter alone hands out work; the channel publishes the results.
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = pending.get(index) else { break };
            if results.send((index, look_up(name))).is_err() {
                break;
            }
        }
    };
    thread::scope(|scope| {
        for number in 0..pending.len().min(AT_ONCE) {
            let (work, results) = (&work, results.clone());
            let started = thread::Builder::new().spawn_scoped(scope, move || work(results));
            match started {
                Ok(_) => {}
                // Fewer threads do as well, only not as fast.
                Err(_) if number > 0 => break,
                Err(error) => return Err(error),
            }
        }
        drop(results);
        let mut done = 0;
        let mut say_at = Clock.now() + PATIENCE;
        loop {
            match results_in.recv_timeout(say_at.since(Clock.now())) {
                Ok((index, result)) => {
                    found[index] = Some(result);
                    done += 1;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if Clock.now() >= say_at && done < pending.len() {
                waiting(done, pending.len());
                say_at = say_at + AGAIN;
            }
        }
    })?;
    let lost = || Err(io::Error::other("the look-up was lost"));
    let found =
        pending.into_iter().zip(found.into_iter().map(|result| result.unwrap_or_else(lost)));
    Ok(Resolved { found: found.collect() })
}

/// Asks getaddrinfo(3) for every address of `name`; ports are 0.
///
/// # Errors
/// The name does not exist, or the resolver cannot say.
pub fn system(name: &str) -> Found {
    Ok((name, 0).to_socket_addrs()?.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Barrier, Mutex};

    #[test]
    fn each_name_is_asked_for_once_and_few_at_a_time() {
        let names: Vec<String> = (0..400).map(|n| format!("h{}", n % 200)).collect();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let asked = Mutex::new(Vec::new());
        let look_up = |name: &str| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            asked.lock().expect("no panic").push(name.to_owned());
            thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
            match name {
                "h7" => Err(io::Error::other("no such name")),
                _ => Ok([1, 2].map(|n| SocketAddr::from(([10, 0, 0, n], 0))).to_vec()),
            }
        };
        let found = resolve(names.iter().map(String::as_str), look_up, &mut |_, _| {});
        let found = found.expect("threads");
        assert_eq!(asked.into_inner().expect("no panic").len(), 200);
        assert!(most.into_inner() <= AT_ONCE);
        for name in &names {
            let found = found.get(name).expect("asked for");
            match name.as_str() {
                "h7" => assert!(found.is_err()),
                _ => assert!(found.as_ref().is_ok_and(|addrs| addrs.len() == 2)),
            }
        }
        assert!(found.get("h999").is_none());
    }

    #[test]
    fn waiting_is_said_and_the_wait_is_shared() {
        let names: Vec<String> = (0..AT_ONCE).map(|n| format!("h{n}")).collect();
        // Ends only once all look-ups are under way at the same time and the wait was spoken of.
        let barrier = Barrier::new(AT_ONCE + 1);
        let mut said = Vec::new();
        let found = resolve(
            names.iter().map(String::as_str),
            |_| {
                barrier.wait();
                Ok(Vec::new())
            },
            &mut |done, of| {
                if said.is_empty() {
                    barrier.wait();
                }
                said.push((done, of));
            },
        );
        assert_eq!(found.expect("threads").found.len(), AT_ONCE);
        assert_eq!(said[0], (0, AT_ONCE));
    }
}
