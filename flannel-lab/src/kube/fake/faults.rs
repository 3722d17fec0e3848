//! What the server does wrong on purpose.

use std::time::Duration;

/// Faults that last until they are set to something else. None unless told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// How long every request waits for its answer, or for its watch to begin.
    pub delay: Duration,
    /// The HTTP status that every request is answered with; or only some, with [`fail_next`](Self::fail_next).
    pub fail: Option<u16>,
    /// How many requests fail before the others are served, with [`fail`](Self::fail) or else 503.
    pub fail_next: u32,
    /// Connections stay open, and nothing is read or written any more, as if the other host had vanished. New ones
    /// are accepted, as the kernel does by itself. Once that ends, everything goes on where it was.
    pub stall: bool,
    /// The HTTP status that patches are answered with.
    pub refuse_patches: Option<u16>,
    /// A watch whose revision is forgotten is answered with HTTP status 410, not with a watch that begins with an
    /// error. Servers do either.
    pub http_410: bool,
    /// Watches get no bookmarks but the one that ends initial events.
    pub no_bookmarks: bool,
    /// Every answer begins like an object and never ends; with the status of [`fail`](Self::fail), if that is set.
    pub endless: bool,
    /// Before each change, a watch says a line that is no JSON.
    pub garbage: bool,
    /// Rights that reviews deny, such as `list nodes`.
    pub deny: Vec<String>,
}

impl Faults {
    /// Those for one request, and the status it fails with.
    pub(super) fn take(&mut self) -> (Self, Option<u16>) {
        let mut fails = self.fail;
        if self.fail_next > 0 {
            fails = Some(self.fail.unwrap_or(503));
            self.fail_next -= 1;
            // With the last of them `fail` is over, too.
            if self.fail_next == 0 {
                self.fail = None;
            }
        }
        (self.clone(), fails)
    }
}
