//! The command line: arguments → plan, records → text.
#![forbid(unsafe_code)]

pub mod args;
mod audit;
mod bench;
mod doctor;
mod dry_run;
mod exit;
pub(crate) mod flows;
mod output;
mod plan;
mod progress;
mod session;
mod sweep;
pub(crate) mod targets;

use args::{Args, Command};
use exit::Exit;
use std::env;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Runs the command that the process was started with, and returns its exit code.
pub fn main() -> ExitCode {
    let args = match Args::read(env::args_os()) {
        Ok(args) => args,
        Err(error) => {
            // Help into a closed pipe is nobody's loss.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::AllAlive }.into();
        }
    };
    let ended = match args.command {
        Command::Sweep(args) => sweep::run(*args),
        Command::Audit(args) => audit::run(*args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match ended {
        Ok(exit) => exit.into(),
        Err(failure) => {
            say(&failure);
            failure.exit().into()
        }
    }
}

/// Says something on standard error, every line under our name. Unlike `eprintln!`, a closed
/// standard error is no reason to die.
fn say(message: impl Display) {
    let mut err = io::stderr().lock();
    for line in message.to_string().lines() {
        let _ = writeln!(err, "keepsweep: {line}");
    }
}
