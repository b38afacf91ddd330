//! Which of the given flows may be probed: not those that this host's kernel owns, nor those of an
//! address that is not ours.
#![forbid(unsafe_code)]

use super::EngineError;
use crate::io::ports;
use crate::io::route::{Constraint, Route, Routes};
use crate::probe::evidence::Seen;
use crate::probe::given::Given;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

/// Returns the flows with what forbids probing them.
///
/// # Errors
/// [`EngineError::System`] if the kernel does not list its sockets or routes.
pub fn examine(flows: &[Given], routes: &mut Routes) -> Result<Vec<Given>, EngineError> {
    let ports = flows.iter().map(|flow| flow.local.port());
    let Some((lowest, highest)) = ports.clone().min().zip(ports.max()) else {
        return Ok(Vec::new());
    };
    let mut owned = HashSet::new();
    ports::holders(&(lowest..=highest), &mut |holder| {
        // A listener owns no connection.
        if holder.peer.port() != 0 {
            owned.insert((holder.local, holder.peer));
        }
    })
    .map_err(EngineError::system)?;
    let mut local = HashMap::new();
    let mut is_local = |address: IpAddr| -> Result<bool, EngineError> {
        if let Some(&known) = local.get(&address) {
            return Ok(known);
        }
        let route = routes.lookup(address, &Constraint::default()).map_err(EngineError::system)?;
        let found = matches!(route, Route::Local { .. });
        local.insert(address, found);
        Ok(found)
    };
    // Scope identifiers are not part of a 4-tuple.
    let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
    let examined = flows.iter().map(|flow| {
        let obstacle = if owned.contains(&(plain(flow.local), plain(flow.peer))) {
            Some(Seen::KernelOwned)
        } else if !is_local(flow.local.ip())? {
            Some(Seen::NotLocal)
        } else {
            None
        };
        Ok(Given { obstacle: flow.obstacle.or(obstacle), ..*flow })
    });
    examined.collect()
}

/// Says in words, for the user, how many flows are not probed, and why.
pub fn notes(flows: &[Given]) -> Vec<String> {
    let reasons = [
        (Seen::KernelOwned, "are connections of this host's kernel"),
        (Seen::NotLocal, "have a local address that is not of this host"),
        (Seen::DataInFlight, "have data in flight"),
    ];
    let count = |seen| flows.iter().filter(|flow| flow.obstacle() == Some(seen)).count();
    reasons
        .into_iter()
        .map(|(seen, why)| (count(seen), why))
        .filter(|&(count, _)| count > 0)
        .map(|(count, why)| format!("flows that are not probed: {count} {why}"))
        .collect()
}
