//! Host names → addresses, by the system's resolver.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Look-ups under way at once: enough to hide latency, few enough for a home router's resolver.
const AT_ONCE: usize = 16;

/// Every name with its addresses, or why there are none.
pub type Resolved<'a> = HashMap<&'a str, io::Result<Vec<IpAddr>>>;

/// Resolves every name once, a bounded number at a time, to all its addresses in the resolver's
/// order.
pub fn resolve<'a>(
    names: impl Iterator<Item = &'a str>,
    look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Sync,
) -> Resolved<'a> {
    let mut pending: Vec<&str> = names.collect();
    pending.sort_unstable();
    pending.dedup();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        // Relaxed: the counter alone hands out work; the join publishes the results.
        while let Some(&name) = pending.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push((name, look_up(name)));
        }
        found
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..pending.len().min(AT_ONCE)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    })
}

/// Asks getaddrinfo(3) for every address of `name`.
///
/// # Errors
/// The name does not exist, or the resolver cannot say.
pub fn system(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|addr| addr.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn each_name_is_asked_for_once_and_few_at_a_time() {
        let names: Vec<String> = (0..200).map(|n| format!("h{}", n % 100)).collect();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let asked = Mutex::new(Vec::new());
        let found = resolve(names.iter().map(String::as_str), |name| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            asked.lock().expect("no panic").push(name.to_owned());
            thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
            match name {
                "h7" => Err(io::Error::other("no such name")),
                _ => Ok(vec![IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])]),
            }
        });
        assert_eq!(asked.into_inner().expect("no panic").len(), 100);
        assert!(most.into_inner() <= AT_ONCE);
        assert_eq!(found.len(), 100);
        assert!(found["h7"].is_err());
        assert!(found.iter().all(|(name, addrs)| {
            *name == "h7" || addrs.as_ref().is_ok_and(|addrs| addrs.len() == 2)
        }));
    }
}
