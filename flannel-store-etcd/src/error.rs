//! What a failed call says, and what follows from it.

use std::error::Error as _;

use etcd_client::Error;
use flannel_core::error::{chain, with_causes};
use flannel_core::subnet::SubnetError;
use tonic::{Code, Status};

/// What came of a call, with the number of the endpoint that answered.
pub(super) type Called<T> = Result<(usize, T), CallError>;

/// A call that failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// No endpoint answered; each with its reason.
    Unavailable { what: &'static str, reasons: String },
    /// One did, with an error.
    Answer { what: &'static str, url: String, error: Error },
}

impl CallError {
    /// The code of an error that the server answered with.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Answer { error: Error::GRpcStatus(status), .. } => Some(status.code()),
            _ => None,
        }
    }

    /// Whether the server won't let us.
    fn is_refusal(&self) -> bool {
        let codes = [Code::Unauthenticated, Code::PermissionDenied, Code::InvalidArgument];
        self.code().is_some_and(|code| codes.contains(&code))
    }

    /// What the status says of it; `None` if the store is well and only had another answer than a value.
    pub(super) fn problem(&self) -> Option<String> {
        match self {
            Self::Unavailable { what, reasons } => Some(format!("{what}: {reasons}")),
            Self::Answer { what, url, error } if self.is_refusal() => {
                Some(format!("{what} at {url}: {}", describe(error)))
            }
            Self::Answer { .. } => None,
        }
    }

    /// Whether an etcd lease was asked for that is not there any more.
    pub(super) fn is_lease_gone(&self) -> bool {
        self.code() == Some(Code::NotFound)
            || matches!(self, Self::Answer { error: Error::LeaseKeepAliveError(_), .. })
    }

    /// Whether the asked revision was compacted.
    pub(super) fn is_compacted(&self) -> bool {
        let is_said = |error: &Error| matches!(error, Error::GRpcStatus(status) if status.message().contains("compacted"));
        self.is_other_revision() && matches!(self, Self::Answer { error, .. } if is_said(error))
    }

    /// Whether the asked revision was compacted, or is not there yet.
    pub(super) fn is_other_revision(&self) -> bool {
        self.code() == Some(Code::OutOfRange) && !self.is_too_large()
    }

    /// Whether the answer is longer than what we read of one.
    pub(super) fn is_too_large(&self) -> bool {
        matches!(self, Self::Answer { error: Error::GRpcStatus(status), .. } if is_too_large(status))
    }
}

impl From<CallError> for SubnetError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unavailable { what, reasons } => {
                Self::Unavailable { what: what.to_owned(), source: reasons.into() }
            }
            CallError::Answer { what, url, error } => {
                let refused = match &error {
                    Error::GRpcStatus(status) => matches!(
                        status.code(),
                        Code::Unauthenticated
                            | Code::PermissionDenied
                            | Code::InvalidArgument
                            | Code::FailedPrecondition
                            | Code::Unimplemented
                    ),
                    _ => false,
                };
                let (what, source) = (format!("{what} at {url}"), describe(&error).into());
                if refused { Self::Refused { what, source } } else { Self::Unavailable { what, source } }
            }
        }
    }
}

/// A login given to a server without users is ignored, as Go's client does.
pub(super) fn is_without_auth(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().contains("authentication is not enabled")
}

/// Whether the store is full and takes only reads, renewals and deletions, at all of its members.
fn is_full(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message().contains("space exceeded")
}

/// Whether a message is longer than one of its ends takes. Our end says so by the length alone, before it reads the
/// message.
pub(super) fn is_too_large(status: &Status) -> bool {
    match status.code() {
        Code::OutOfRange => status.message().contains("message length too large"),
        // A proxy on the way.
        Code::ResourceExhausted => status.message().contains("message larger than max"),
        _ => false,
    }
}

/// What an operator does about a full store.
const FULL: &str = "etcd is full (NOSPACE): leases that are held stay, new ones have to wait; compact and defragment it or raise \
    --quota-backend-bytes, then run etcdctl alarm disarm";

/// Whether another endpoint, or a later try, may do better.
pub(super) fn is_transient(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(status) if is_full(status) || is_too_large(status) => false,
        Error::GRpcStatus(status) => matches!(
            status.code(),
            Code::Unavailable
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Unknown
                | Code::Internal
                | Code::Aborted
                | Code::ResourceExhausted
        ),
        Error::LeaseKeepAliveError(_)
        | Error::InvalidArgs(_)
        | Error::InvalidUri(_)
        | Error::InvalidMetadataValue(_) => false,
        _ => true,
    }
}

pub(super) fn is_timeout(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled))
}

/// The error with all its causes: the outermost one often says nothing but "transport error".
pub(super) fn describe(error: &Error) -> String {
    let (text, cause) = match error {
        Error::GRpcStatus(status) if is_full(status) => (format!("{FULL} ({})", status.message()), None),
        Error::GRpcStatus(status) if status.message().is_empty() => {
            (status.code().description().to_owned(), status.source())
        }
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        Error::TransportError(error) => return chain(error),
        other => (other.to_string(), None),
    };
    with_causes(text, cause)
}
