//! Advice for operators about a record that conflicts with others, from the store that has it.

use std::fmt;
use std::sync::Arc;

use crate::lease::{Field, LeaseKey};

type Advise = dyn Fn(LeaseKey, Field) -> String + Send + Sync;

/// The advice about one field of one record. A store that knows more of a record than its key, such as the name of its
/// node object, gives its own advice.
#[derive(Clone)]
pub struct Remedy(Arc<Advise>);

impl Remedy {
    /// A remedy by this function. It is called for each line of a status, so it has to be fast.
    pub fn new(advise: impl Fn(LeaseKey, Field) -> String + Send + Sync + 'static) -> Self {
        Self(Arc::new(advise))
    }

    /// What to do about a field of the record with this key, if that record is the wrong one.
    pub fn advise(&self, key: LeaseKey, field: Field) -> String {
        (self.0)(key, field)
    }
}

impl Default for Remedy {
    /// The advice for a store whose records operators write and delete by key.
    fn default() -> Self {
        Self::new(|key, field| format!("if the {field} of {key} is wrong, delete that record"))
    }
}

impl fmt::Debug for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remedy")
    }
}
