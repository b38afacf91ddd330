//! Exit codes, all in one place.
#![forbid(unsafe_code)]

use crate::engine::EngineError;
use std::process::ExitCode;

/// How the program ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Every peer is alive, or nothing is missing; also when the reader of our output went away.
    AllAlive,
    /// Some peer is not (`undetermined` included).
    SomeNotAlive,
    /// Bad usage or input.
    Usage,
    /// Missing privilege or kernel feature, an OS error, or output not written in full.
    System,
    /// Ctrl-C or SIGTERM, after closing flows and writing what is known.
    Interrupted,
}

impl Exit {
    /// Returns the exit code.
    pub const fn code(self) -> u8 {
        match self {
            Exit::AllAlive => 0,
            Exit::SomeNotAlive => 1,
            Exit::Usage => 2,
            Exit::System => 3,
            Exit::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Why a command could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The request or an input file is wrong.
    #[error("{0:#}")]
    Usage(anyhow::Error),
    /// The system does not allow it or failed.
    #[error("{0:#}")]
    System(anyhow::Error),
}

impl Failure {
    /// Returns how the program ends after this failure.
    pub const fn exit(&self) -> Exit {
        match self {
            Failure::Usage(_) => Exit::Usage,
            Failure::System(_) => Exit::System,
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        match error {
            EngineError::Usage(_) => Failure::Usage(error.into()),
            EngineError::System(_) => Failure::System(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_manual() {
        let all =
            [Exit::AllAlive, Exit::SomeNotAlive, Exit::Usage, Exit::System, Exit::Interrupted];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3, 130]);
    }

    #[test]
    fn engine_errors_keep_their_meaning() {
        let usage = Failure::from(EngineError::Usage("no interface eth9".into()));
        assert_eq!((usage.exit(), usage.to_string()), (Exit::Usage, "no interface eth9".into()));
        assert_eq!(Failure::from(EngineError::System("EPERM".into())).exit(), Exit::System);
    }
}
