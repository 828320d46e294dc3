//! Why a command ended without its result.

use kvpn_proto::Failure;
use nix::sys::signal::Signal;

/// Why a command ended without its result.
#[derive(Debug)]
pub(crate) enum Ended {
    Failed(Failure),
    /// The user or the system told the command to stop.
    Interrupted(Signal),
}

impl Ended {
    /// The exit code: the failure's own, or 128 and the signal as in a shell.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(failure) => failure.reason.exit_code(),
            Self::Interrupted(signal) => exit_code_of_signal(*signal as i32),
        }
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What a shell reports for a program that a signal ended.
pub(crate) fn exit_code_of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use kvpn_proto::Reason;

    use super::*;

    #[test]
    fn exit_codes_are_the_reasons_or_the_shells() {
        let failed = Ended::from(Failure::new(Reason::NoSuchPort, "no", "do"));
        assert_eq!(failed.exit_code(), 31);
        assert_eq!(Ended::Interrupted(Signal::SIGINT).exit_code(), 130);
        assert_eq!(Ended::Interrupted(Signal::SIGTERM).exit_code(), 143);
    }
}
