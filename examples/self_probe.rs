//! The self-probe: an application asks whether the peer of a connection of its own is still there.
//!
//! ```text
//! cargo build --example self_probe && sudo target/debug/examples/self_probe db1.example.net:5432
//! ```
//!
//! Exit code: 0 if the peer is alive, 1 if it is not, 2 if nobody could tell.

use keepsweep::audit;
use keepsweep::probe::classify::State;
use std::error::Error;
use std::net::TcpStream;
use std::process::ExitCode;

fn ask(peer: &str) -> Result<State, Box<dyn Error>> {
    // The application's own connection, with its own traffic, of which the probe takes nothing.
    let stream = TcpStream::connect(peer)?;
    let verdict = audit::probe(&stream)?;
    println!("{peer} is {} ({})", verdict.state.name(), verdict.reason.name());
    Ok(verdict.state)
}

fn main() -> ExitCode {
    let Some(peer) = std::env::args().nth(1) else {
        eprintln!("usage: self_probe HOST:PORT");
        return ExitCode::from(2);
    };
    match ask(&peer) {
        Ok(State::Alive) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("self_probe: {error}");
            ExitCode::from(2)
        }
    }
}
