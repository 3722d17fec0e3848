//! Waiting for something to come true, with an error that tells what was last seen instead.

use std::env;
use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use crate::LabError;

/// How long to wait between two probes, at least and at most.
const POLL: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(100)];

/// Says how many times longer to wait.
const PATIENCE: &str = "FLANNEL_LAB_PATIENCE";

/// What a probe can return: `bool`, `Option<T>` or `Result<T, E>`. An `Err` is shown if it was
/// the last.
pub trait Outcome {
    /// What there is once the condition holds.
    type Value;

    /// The value, or what was seen instead.
    fn outcome(self) -> Result<Self::Value, String>;
}

impl Outcome for bool {
    type Value = ();

    fn outcome(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".into()) }
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".into())
    }
}

impl<T, E: Debug> Outcome for Result<T, E> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:?}"))
    }
}

/// A deadline as long as this machine needs: `FLANNEL_LAB_PATIENCE` says how many times slower it is than the one that the
/// deadline was meant for. An emulated processor, say, or a sanitizer.
pub fn patiently(deadline: Duration) -> Duration {
    deadline * factor(env::var(PATIENCE).ok().as_deref())
}

/// What a value of [`PATIENCE`] says; 1 where it says nothing that can be understood.
fn factor(value: Option<&str>) -> u32 {
    value.and_then(|value| value.parse().ok()).unwrap_or(1).max(1)
}

/// Probes until the condition holds, once at least, or until the deadline, [`patiently`]. Between two probes it waits as long as the last one took, from 10 to
/// 100 ms: a probe that starts programs leaves the processor to those that it waits for.
pub fn wait_for<O: Outcome>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> O,
) -> Result<O::Value, LabError> {
    let (start, deadline) = (Instant::now(), patiently(deadline));
    loop {
        let began = Instant::now();
        match probe().outcome() {
            Ok(value) => return Ok(value),
            Err(last) if start.elapsed() >= deadline => {
                return Err(LabError::Timeout { what: what.to_owned(), waited: deadline, last });
            }
            Err(_) => thread::sleep(began.elapsed().clamp(POLL[0], POLL[1])),
        }
    }
}

/// [`wait_for`] for tests.
///
/// # Panics
///
/// If the condition doesn't hold within the deadline; with the caller's line and the last look.
#[track_caller]
pub fn eventually<O: Outcome>(deadline: Duration, what: &str, probe: impl FnMut() -> O) -> O::Value {
    match wait_for(deadline, what, probe) {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_the_value_once_it_is_there() {
        let mut looks = 0;
        let value = eventually(Duration::from_secs(5), "three looks", || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(value, 3);
    }

    #[test]
    fn patience_is_a_factor_and_never_shortens() {
        assert_eq!(factor(Some("10")), 10);
        for odd in [None, Some(""), Some("0"), Some("-3"), Some("1.5"), Some("much")] {
            assert_eq!(factor(odd), 1, "{odd:?}");
        }
    }

    #[test]
    fn a_time_out_shows_the_last_look() {
        let probe = || Err::<(), _>("only 2 of 3");
        let error = wait_for(Duration::ZERO, "three nodes", probe).unwrap_err().to_string();
        assert!(error.contains("three nodes") && error.contains("only 2 of 3"), "{error}");
    }
}
