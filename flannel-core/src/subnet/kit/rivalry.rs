//! Two agents that both write under one key.

/// How often in a row another address may be put into our record before somebody at that address has to be there.
const MOST_CHANGES: u32 = 8;

/// Tells a record that somebody tampered with once from one that a second agent with our backend data, such as that of
/// a copied machine, keeps writing: the two would overwrite each other for ever. A store starts a new one once the
/// record has stayed as it should be for a while.
#[derive(Debug, Default)]
pub struct Rivalry {
    by: String,
    times: u32,
}

impl Rivalry {
    /// Counts that our record had this other address once more. Returns whether that happened too often in a row, so
    /// that the lease counts as lost.
    pub fn changed_by(&mut self, by: &str) -> bool {
        if self.by != by {
            *self = Self { by: by.to_owned(), times: 0 };
        }
        self.times += 1;
        self.times > MOST_CHANGES
    }

    /// The other agent in words, for the `holder` of [`SubnetError::LeaseLost`](crate::subnet::SubnetError::LeaseLost).
    pub fn holder(&self) -> String {
        format!(
            "an agent at {} that publishes the same backend data, as a copy of this machine does",
            self.by
        )
    }
}
