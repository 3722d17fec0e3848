//! What is checked, by topic. A check says what it saw; an error is what is wrong.

pub(crate) mod access;
pub(crate) mod fake;
pub(crate) mod nodes;
pub(crate) mod outages;
pub(crate) mod published;
pub(crate) mod traffic;
