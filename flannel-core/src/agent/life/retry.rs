//! Steps of the start that are tried again and again.

use std::time::Duration;

use super::{AgentEvent, Board};
use crate::backoff::{Backoff, Delays};
use crate::error::chain;
use crate::subnet::SubnetError;

/// The delays between tries.
const DELAYS: Delays = Delays::new(Duration::from_millis(500), Duration::from_secs(5));

/// Tries again and again, with growing delays, and tells only what is new.
pub(super) struct Retry<'a> {
    board: &'a Board,
    backoff: Backoff,
    told: Option<String>,
}

impl<'a> Retry<'a> {
    pub(super) fn new(board: &'a Board) -> Self {
        Self { board, backoff: Backoff::with(DELAYS), told: None }
    }

    /// Notes a failure and returns its text. Stores tell their outages themselves.
    pub(super) fn failed(&mut self, error: &SubnetError, step: &'static str) -> String {
        let why = chain(error);
        if !matches!(error, SubnetError::Unavailable { .. }) && self.told.as_ref() != Some(&why) {
            self.board.emit(AgentEvent::Waiting { step, why: why.clone() });
            self.told = Some(why.clone());
        }
        why
    }

    /// Waits before the next try; the jitter keeps nodes that fail together from trying together.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.backoff.pause()).await;
    }
}
