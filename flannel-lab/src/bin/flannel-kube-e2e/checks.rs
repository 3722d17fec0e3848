//! What is checked, by topic. A check returns what it saw, or an error that says what is wrong.

pub(crate) mod access;
pub(crate) mod fake;
pub(crate) mod nodes;
pub(crate) mod outages;
pub(crate) mod published;
pub(crate) mod traffic;
