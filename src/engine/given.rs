//! Which of the given flows may be probed, and how: those that this host's kernel owns as its own
//! reading of them tells; not those of an address that is not ours.
#![forbid(unsafe_code)]

use super::EngineError;
use super::host::Kernel;
use crate::io::conntrack;
use crate::io::ports;
use crate::io::raw::Likeness;
use crate::io::route::{Constraint, Route, Routes};
use crate::probe::evidence::Seen;
use crate::probe::given::Given;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

/// The given flows, looked at.
#[derive(Debug, Default)]
pub struct Examined {
    /// The flows, with what forbids probing them.
    pub given: Vec<Given>,
    /// How packets of those are routed that the kernel owns.
    pub likeness: Vec<Option<Likeness>>,
    /// What reads the kernel's again.
    pub kernel: Option<Kernel>,
    /// Why the kernel's cannot be read, if there are any.
    pub unreadable: Option<String>,
}

/// Looks at the given flows: reads those that the kernel owns, and asks whose the addresses are.
///
/// # Errors
/// [`EngineError::System`] if the kernel does not list its sockets or routes.
pub fn examine(flows: &[Given], routes: &mut Routes) -> Result<Examined, EngineError> {
    if flows.is_empty() {
        return Ok(Examined::default());
    }
    let mut examined = match Kernel::open() {
        Ok(mut kernel) => {
            let (given, likeness) = kernel.examine(flows).map_err(EngineError::system)?;
            let kernel = given.iter().any(is_probed_by_kernel).then_some(kernel);
            Examined { given, likeness, kernel, unreadable: None }
        }
        // An audit has read them already.
        Err(error) if flows.iter().any(|flow| flow.host.is_some()) => {
            return Err(EngineError::system(error));
        }
        Err(error) => leave_owned(flows, &error.to_string())?,
    };
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
    for flow in &mut examined.given {
        if flow.obstacle.is_none() && !is_local(flow.local.ip())? {
            // What the kernel has a connection from was its own.
            let is_ours = flow.host.is_some();
            flow.obstacle = Some(if is_ours { Seen::AddressLost } else { Seen::NotLocal });
        }
    }
    Ok(examined)
}

fn is_probed_by_kernel(flow: &Given) -> bool {
    flow.host.is_some() && flow.obstacle.is_none()
}

/// Finds out which flows the kernel owns, where it does not say more of them, and leaves those alone.
fn leave_owned(flows: &[Given], why: &str) -> Result<Examined, EngineError> {
    let ports = flows.iter().map(|flow| flow.local.port());
    let (lowest, highest) = (ports.clone().min().unwrap_or(0), ports.max().unwrap_or(u16::MAX));
    let mut owned = HashSet::new();
    ports::holders(&(lowest..=highest), &mut |holder| {
        // A listener owns no connection.
        if holder.peer.port() != 0 {
            owned.insert((holder.local, holder.peer));
        }
    })
    .map_err(EngineError::system)?;
    let mut examined = Examined { likeness: vec![None; flows.len()], ..Examined::default() };
    for flow in flows {
        let is_owned = owned.contains(&conntrack::ends(flow.local, flow.peer));
        let obstacle = flow.obstacle.or(is_owned.then_some(Seen::KernelOwned));
        examined.given.push(Given { obstacle, ..*flow });
        if is_owned {
            examined.unreadable = Some(why.to_owned());
        }
    }
    Ok(examined)
}

/// Says in words, for the user, how many flows are not probed, and why.
pub fn notes(flows: &[Given], unreadable: Option<&str>, no_way: Option<&str>) -> Vec<String> {
    let owned = format!(
        "are connections of this host's kernel, which could not be read ({})",
        unreadable.unwrap_or("no reader")
    );
    let stuck =
        format!("have no way out of this host, such as {}", no_way.unwrap_or("by its route"));
    type Concerns = fn(&Seen) -> bool;
    let reasons: [(Concerns, &str); 9] = [
        (|seen| *seen == Seen::LinkDown, "leave through a link of this host that is down"),
        (|seen| *seen == Seen::AddressLost, "are from an address that this host has lost"),
        (|seen| *seen == Seen::KernelOwned, &owned),
        (|seen| *seen == Seen::NotSent, &stuck),
        (|seen| *seen == Seen::NotLocal, "have a local address that is not of this host"),
        (|seen| *seen == Seen::DataInFlight, "have data in flight"),
        (|seen| *seen == Seen::Signed, "are signed (TCP-MD5 or TCP-AO)"),
        (|seen| *seen == Seen::SocketGone, "are gone since they were listed"),
        (
            |seen| matches!(seen, Seen::TcpState(_)),
            "are in a state in which there is nothing to keep alive",
        ),
    ];
    let count = |concerns: Concerns| {
        flows.iter().filter(|flow| flow.obstacle().as_ref().is_some_and(concerns)).count()
    };
    reasons
        .into_iter()
        .map(|(concerns, why)| (count(concerns), why))
        .filter(|&(count, _)| count > 0)
        .map(|(count, why)| format!("flows that are not probed: {count} {why}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_without_a_way_are_said_with_the_cause() {
        let flow = Given::example(40_000);
        let stuck = Given { obstacle: Some(Seen::NotSent), ..flow };
        assert_eq!(notes(&[flow], None, None), [""; 0]);
        assert_eq!(
            notes(&[flow, stuck, stuck], None, Some("10.99.0.7 via eth0: no carrier")),
            ["flows that are not probed: 2 have no way out of this host, such as \
                 10.99.0.7 via eth0: no carrier"]
        );
    }
}
