//! The `keepsweep` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    keepsweep::cli::main()
}
