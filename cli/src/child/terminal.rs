//! The terminal, which a command such as a shell takes for itself, and should give back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc::O_NOCTTY;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// The terminal in whose foreground this process was.
pub(super) struct Terminal {
    file: File,
    modes: Termios,
}

impl Terminal {
    /// Nothing where there is none, or this process is in its background.
    pub(super) fn own() -> Option<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(O_NOCTTY);
        let file = options.open("/dev/tty").ok()?;
        let modes = tcgetattr(&file).ok()?;
        (tcgetpgrp(&file) == Ok(getpgrp())).then_some(Self { file, modes })
    }

    /// Takes it back from a command that has ended in its foreground without giving it back,
    /// and undoes what one that was killed has left of its modes.
    pub(super) fn take_back(&self, command: Option<u32>, was_killed: bool) {
        let Ok(holder) = tcgetpgrp(&self.file) else {
            return;
        };
        let is_ours = holder == getpgrp();
        if !is_ours && !is_left(holder, command) {
            return;
        }
        // Who is in the background would be stopped for it.
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTTOU);
        let is_blocked = stop.thread_block();
        if is_blocked.is_ok() {
            // It may be gone.
            let _ = tcsetpgrp(&self.file, getpgrp());
            if was_killed {
                let _ = tcsetattr(&self.file, SetArg::TCSANOW, &self.modes);
            }
            let _ = stop.thread_unblock();
        }
    }
}

/// Whether a terminal's foreground is the ended command's, or nobody's. It may be another
/// one's by now, as that of the shell that has sent this process to the background.
fn is_left(holder: Pid, command: Option<u32>) -> bool {
    let is_commands = command.and_then(|it| i32::try_from(it).ok()) == Some(holder.as_raw());
    is_commands || killpg(holder, None) == Err(Errno::ESRCH)
}
