//! Waiting for a condition, always with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const INTERVAL: Duration = Duration::from_millis(50);

/// Polls until `probe` gives a value. Its `None` and its errors mean "not yet";
/// the last error is part of the failure.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        let last = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= end {
            match last {
                Some(error) => return Err(error.context(late(what, deadline))),
                None => bail!(late(what, deadline)),
            }
        }
        std::thread::sleep(INTERVAL);
    }
}

fn late(what: &str, deadline: Duration) -> String {
    format!("{what}: not within {} s", deadline.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_the_condition_and_the_last_error() {
        let result: Result<()> = wait_for("the door opens", Duration::ZERO, || bail!("locked"));
        let text = format!("{:#}", result.unwrap_err());
        assert_eq!(text, "the door opens: not within 0 s: locked");
    }

    #[test]
    fn value_is_returned_once_there() {
        let mut calls = 0;
        let value = wait_for("third call", Duration::from_secs(5), || {
            calls += 1;
            Ok((calls == 3).then_some(calls))
        });
        assert_eq!(value.unwrap(), 3);
    }
}
