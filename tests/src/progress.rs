//! Progress lines on stderr, each with the time since the program started.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

static START: OnceLock<Instant> = OnceLock::new();

/// Starts the clock of the progress lines, unless it runs.
pub fn begin() {
    START.get_or_init(Instant::now);
}

/// Prints one line of progress.
pub fn step(message: impl std::fmt::Display) {
    let elapsed = START.get_or_init(Instant::now).elapsed();
    eprintln!("[{:>7.1}s] {message}", elapsed.as_secs_f64());
}

/// Runs something slow, and says every few seconds that it still runs.
pub fn long<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let (done_tx, done_rx) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Ends when the sender is dropped.
            while done_rx.recv_timeout(Duration::from_secs(15))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                step(format_args!(
                    "{what}: {} s so far",
                    begin.elapsed().as_secs()
                ));
            }
        });
        let result = work();
        drop(done_tx);
        result
    })
}
