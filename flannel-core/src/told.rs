//! Remembers what the log named recently. A record that somebody breaks and corrects again and again would fill the
//! log, and so would thousands of records.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

/// A thing is named at most once in this time.
const QUIET: Duration = Duration::from_mins(1);
/// At most this many things are named in that time.
const MOST: usize = 20;

/// Remembers what was named.
#[derive(Debug, Default)]
pub(crate) struct Told {
    hasher: RandomState,
    named: HashMap<u64, Instant>,
    left_out: u64,
}

impl Told {
    /// `Some` if a thing should be named now, with the number that were left out since the last one that was named,
    /// because they had been named recently or were too many.
    pub(crate) fn news(&mut self, thing: &str, now: Instant) -> Option<u64> {
        self.named.retain(|_, told| now.saturating_duration_since(*told) < QUIET);
        let thing = self.hasher.hash_one(thing);
        if self.named.contains_key(&thing) || self.named.len() >= MOST {
            self.left_out += 1;
            return None;
        }
        self.named.insert(thing, now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_thing_is_named_once_a_minute_and_twenty_things_at_most() {
        let mut told = Told::default();
        assert_eq!(told.news("a", Instant::now()), Some(0));
        for _ in 0..1000 {
            assert_eq!(told.news("a", Instant::now()), None, "it comes and goes");
        }
        let named = (0..1000).filter_map(|n| told.news(&n.to_string(), Instant::now()));
        assert_eq!(named.collect::<Vec<_>>(), [&[1000][..], &[0; 18]].concat());
        tokio::time::advance(QUIET).await;
        assert_eq!(told.news("a", Instant::now()), Some(981));
    }
}
