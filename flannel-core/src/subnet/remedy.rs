//! What an operator does about a record that contradicts others, in the words of the store that has it.

use std::fmt;
use std::sync::Arc;

use crate::lease::{Field, LeaseKey};

type Advise = dyn Fn(LeaseKey, Field) -> String + Send + Sync;

/// Says what to do about one field of one record. A store that knows more of a record than its key, such as the
/// name of the node object it is made of, brings its own words.
#[derive(Clone)]
pub struct Remedy(Arc<Advise>);

impl Remedy {
    /// A remedy that asks this function. It is called for each line of a status, so it has to be quick.
    pub fn new(advise: impl Fn(LeaseKey, Field) -> String + Send + Sync + 'static) -> Self {
        Self(Arc::new(advise))
    }

    /// What to do about a field of the record with this key if that record is the wrong one.
    pub fn advise(&self, key: LeaseKey, field: Field) -> String {
        (self.0)(key, field)
    }
}

impl Default for Remedy {
    /// For a store whose records operators write and delete by their keys.
    fn default() -> Self {
        Self::new(|key, field| format!("if the {field} of {key} is wrong, delete that record"))
    }
}

impl fmt::Debug for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remedy")
    }
}
