//! How many requests a store's client made, how many were not answered, and how long they took.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::status::{Durations, Histogram};

/// Counts the requests to one store. A clone counts the same requests; two handles are equal if they are clones of each
/// other, whatever they counted.
#[derive(Clone, Default)]
pub struct StoreRequests(Arc<Counted>);

#[derive(Default)]
struct Counted {
    kinds: Mutex<BTreeMap<&'static str, (u64, u64)>>,
    took: Histogram,
}

/// The requests of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RequestCount {
    /// What was asked, such as `list leases`.
    pub request: &'static str,
    /// How many there were, also those that failed.
    pub sent: u64,
    /// How many the store did not answer, or answered with a temporary error. An answer that says no is no failure.
    pub failed: u64,
}

impl StoreRequests {
    /// Counts a request that took this long. The kinds of requests are few, and their names constants.
    pub fn record(&self, request: &'static str, took: Duration, is_answered: bool) {
        self.0.took.observe(took);
        let mut kinds = self.0.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let (sent, failed) = kinds.entry(request).or_default();
        *sent += 1;
        *failed += u64::from(!is_answered);
    }

    /// The requests of each kind so far, in the order of their names.
    pub fn read(&self) -> Vec<RequestCount> {
        let kinds = self.0.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |(request, (sent, failed)): (&&'static str, &(u64, u64))| RequestCount {
            request,
            sent: *sent,
            failed: *failed,
        };
        kinds.iter().map(count).collect()
    }

    /// How long they took, until the answer or the failure.
    pub fn took(&self) -> Durations {
        self.0.took.read()
    }
}

impl PartialEq for StoreRequests {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for StoreRequests {}

impl fmt::Debug for StoreRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.read()).finish()
    }
}

impl Serialize for StoreRequests {
    /// Serialises the present counts, as a list.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.read().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_apart_and_times_together() {
        let requests = StoreRequests::default();
        let second = Duration::from_secs(1);
        requests.record("list leases", second, true);
        requests.clone().record("list leases", second, false);
        requests.record("create the lease", second, true);
        let json = serde_json::to_string(&requests).unwrap();
        let want = r#"[{"request":"create the lease","sent":1,"failed":0},{"request":"list leases","sent":2,"failed":1}]"#;
        assert_eq!(json, want);
        assert_eq!((requests.took().count(), requests.took().sum), (3, 3 * second));
    }
}
