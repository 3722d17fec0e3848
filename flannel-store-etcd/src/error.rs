//! Errors of calls, and what they mean.

use std::error::Error as _;

use etcd_client::Error;
use flannel_core::error::{chain, with_causes};
use flannel_core::subnet::SubnetError;
use tonic::{Code, Status};

/// The result of a call, with the index of the endpoint that answered.
pub(super) type Called<T> = Result<(usize, T), CallError>;

/// A call that failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// No endpoint answered, with the reason of each.
    Unavailable { what: &'static str, reasons: String },
    /// An endpoint answered with an error.
    Answer { what: &'static str, url: String, error: Error },
}

impl CallError {
    /// The code of the server's error.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Answer { error: Error::GRpcStatus(status), .. } => Some(status.code()),
            _ => None,
        }
    }

    /// Whether the server denied permission or login.
    fn is_refusal(&self) -> bool {
        let codes = [Code::Unauthenticated, Code::PermissionDenied, Code::InvalidArgument];
        self.code().is_some_and(|code| codes.contains(&code))
    }

    /// The text for the status; `None` if the store works and only had no value to return.
    pub(super) fn problem(&self) -> Option<String> {
        match self {
            Self::Unavailable { what, reasons } => Some(format!("{what}: {reasons}")),
            Self::Answer { what, url, error } if self.is_refusal() => {
                Some(format!("{what} at {url}: {}", describe(error)))
            }
            Self::Answer { .. } => None,
        }
    }

    /// Whether the requested etcd lease is gone.
    pub(super) fn is_lease_gone(&self) -> bool {
        self.code() == Some(Code::NotFound)
            || matches!(self, Self::Answer { error: Error::LeaseKeepAliveError(_), .. })
    }

    /// Whether the requested revision was compacted.
    pub(super) fn is_compacted(&self) -> bool {
        let is_said = |error: &Error| matches!(error, Error::GRpcStatus(status) if status.message().contains("compacted"));
        self.is_other_revision() && matches!(self, Self::Answer { error, .. } if is_said(error))
    }

    /// Whether the requested revision was compacted, or is not reached yet.
    pub(super) fn is_other_revision(&self) -> bool {
        self.code() == Some(Code::OutOfRange) && !self.is_too_large()
    }

    /// Whether the answer is longer than we read.
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

/// Whether the server has no authentication: then a login is ignored, as Go's client does.
pub(super) fn is_without_auth(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().contains("authentication is not enabled")
}

/// Whether the store is full, so that all members accept only reads, renewals and deletions.
fn is_full(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message().contains("space exceeded")
}

/// Whether a message is longer than one of its ends accepts. Our end decides by the length, before it reads the
/// message.
pub(super) fn is_too_large(status: &Status) -> bool {
    match status.code() {
        Code::OutOfRange => status.message().contains("message length too large"),
        // From a proxy.
        Code::ResourceExhausted => status.message().contains("message larger than max"),
        _ => false,
    }
}

/// The advice to operators about a full store.
const FULL: &str = "etcd is full (NOSPACE): leases that are held stay, new ones have to wait; compact and defragment it or raise \
    --quota-backend-bytes, then run etcdctl alarm disarm";

/// Whether another endpoint, or a later attempt, may succeed.
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

/// The error with all its causes: the outermost one often says only "transport error".
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
