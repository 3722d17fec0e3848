//! A list of all leases that was read a moment ago. A start needs one for what this node published before, for the choice of a subnet and
//! for the watch's snapshot; so the call that reads it leaves it to the next.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::records::Listed;

/// How old a list may be. A start takes milliseconds from one call to the next, or some tenths of a second with many leases.
const LONGEST: Duration = Duration::from_secs(2);

/// The list, until it is taken.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Option<Listed>>);

impl Kept {
    /// Keeps a list that was read just now, in place of any other.
    pub(super) fn keep(&self, listed: Listed) {
        self.put(Some(listed));
    }

    /// Takes the list, unless it is too old. It is true at its revision: what has changed since must be found out.
    pub(super) fn take(&self) -> Option<Listed> {
        self.put(None).filter(|listed| listed.read.elapsed() < LONGEST)
    }

    fn put(&self, next: Option<Listed>) -> Option<Listed> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), next)
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::Position;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_list_is_taken_once_and_not_when_it_is_old() {
        let kept = Kept::default();
        let listed = Listed::at(Position::of(None));
        kept.keep(listed.clone());
        assert!(kept.take().is_some() && kept.take().is_none());
        tokio::time::advance(LONGEST / 2).await;
        kept.keep(listed.clone());
        assert!(kept.take().is_some());
        tokio::time::advance(LONGEST / 2).await;
        kept.keep(listed);
        assert!(kept.take().is_none(), "its age counts from when it was read");
    }
}
