//! Errors as text.

pub(crate) use flannel_core::error::chain;
