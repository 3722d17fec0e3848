//! What is wrong with a command line.

/// Why a command line or an environment can't be used, in words that show no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub(crate) String);

impl From<UsageError> for String {
    fn from(error: UsageError) -> Self {
        error.0
    }
}
