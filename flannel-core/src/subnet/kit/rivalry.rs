//! Detects two agents that both write to the same record.

/// How many times in a row the same other address may appear in our record before it counts as another agent.
const MOST_CHANGES: u32 = 8;

/// Distinguishes a record that somebody tampered with once from one that a second agent with our backend data keeps
/// writing, for example on a copied machine: the two agents would overwrite each other for ever. A store starts a new
/// one once the record has stayed unchanged for a while.
#[derive(Debug, Default)]
pub struct Rivalry {
    by: String,
    times: u32,
}

impl Rivalry {
    /// Counts that our record had this other address again. Returns whether that happened too many times in a row, so
    /// that the lease counts as lost.
    pub fn changed_by(&mut self, by: &str) -> bool {
        if self.by != by {
            *self = Self { by: by.to_owned(), times: 0 };
        }
        self.times += 1;
        self.times > MOST_CHANGES
    }

    /// The other agent as text, for the `holder` of [`SubnetError::LeaseLost`](crate::subnet::SubnetError::LeaseLost).
    pub fn holder(&self) -> String {
        format!(
            "an agent at {} that publishes the same backend data, as a copy of this machine does",
            self.by
        )
    }
}
