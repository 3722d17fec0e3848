//! What `nft -j list table` prints, as a function of bytes, for fuzzing.

use super::super::rules::{Ours, Wanted};
use super::listing::table;
use super::script::script;
use crate::addr::Family;

/// A listing of the table that is ours.
///
/// # Panics
/// If a reason is empty.
pub(crate) fn listing(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for family in Family::ALL {
        match table(family, &text) {
            Ok(seen) => _ = script(family, &Wanted::default(), true, Some(&seen), &Ours::Of(Vec::new())),
            Err(why) => assert!(!why.is_empty()),
        }
    }
}
