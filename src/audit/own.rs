//! The self-probe: an application asks about a connection of its own.
#![forbid(unsafe_code)]

use super::sweeps::setup;
use super::{AuditError, Listed, PLAN};
use crate::engine::{Control, EngineError, Sweep};
use crate::io::host::{Reader, cookie_of};
use crate::probe::evidence::Verdict;
use crate::probe::plan::Plan;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

/// Asks whether the peer of a connected TCP socket of this process is still there, by [`PLAN`]: an
/// answer within a round trip, or at the latest some seconds after the fifth keepalive.
///
/// Neither the socket nor what is read from or written to it is affected. Nothing but keepalives is sent:
/// a firewall that has forgotten the connection looks like a peer that is down. Blocks; call it from a
/// thread that may wait. Needs the privileges of an audit.
///
/// ```no_run
/// use keepsweep::audit;
/// use keepsweep::probe::classify::State;
/// use std::net::TcpStream;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stream = TcpStream::connect("192.0.2.7:5432")?;
/// let verdict = audit::probe(&stream)?;
/// if verdict.state != State::Alive {
///     println!("the peer is {}: {}", verdict.state.name(), verdict.reason.name());
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`AuditError`]: no privilege, not a connected TCP socket, or one of another network namespace
/// than the calling thread's.
pub fn probe(socket: &impl AsFd) -> Result<Verdict, AuditError> {
    probe_with(socket, PLAN)
}

/// Asks as [`probe`] does, by another plan.
///
/// # Errors
/// As [`probe`].
pub fn probe_with(socket: &impl AsFd, plan: Plan) -> Result<Verdict, AuditError> {
    let cookie = cookie_of(socket.as_fd())?;
    // Opening a sweep takes the privileges of its thread away: not those of the application's.
    let asked = thread::scope(|scope| scope.spawn(|| ask(cookie, plan)).join());
    asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn ask(cookie: u64, plan: Plan) -> Result<Verdict, AuditError> {
    let mut found = None;
    Reader::open()?.read(&mut |connection| {
        if connection.cookie == cookie {
            found = Some(connection);
        }
    })?;
    let Some(connection) = found else {
        return Err(AuditError::Usage(format!(
            "find the socket with cookie {cookie} among this network namespace's connections: it \
             is not there; it must be connected, and of this thread's namespace"
        )));
    };
    let listed = Listed { connection, process: None, translated: None, netns: "".into() };
    let mut verdict = None;
    let sweep = Sweep::open(setup(&[Arc::new(listed)], plan))?;
    // A correction is better than what it corrects.
    sweep.run(&Control::default(), &mut |said| verdict = Some(said))?;
    verdict.ok_or_else(|| EngineError::System("probe a socket: no verdict came".into()).into())
}
