//! Retries steps of the start.

use std::time::Duration;

use super::{AgentEvent, Board};
use crate::backoff::{Backoff, Delays};
use crate::error::chain;
use crate::subnet::SubnetError;

/// The delays between attempts.
const DELAYS: Delays = Delays::new(Duration::from_millis(500), Duration::from_secs(5));

/// Counts the failures of a step, with growing delays, and reports only new errors.
pub(super) struct Retry<'a> {
    board: &'a Board,
    backoff: Backoff,
    told: Option<String>,
}

impl<'a> Retry<'a> {
    pub(super) fn new(board: &'a Board) -> Self {
        Self { board, backoff: Backoff::with(DELAYS), told: None }
    }

    /// Records a failure and returns its text. Stores log their outages themselves.
    pub(super) fn failed(&mut self, error: &SubnetError, step: &'static str) -> String {
        let why = chain(error);
        if !matches!(error, SubnetError::Unavailable { .. }) && self.told.as_ref() != Some(&why) {
            self.board.emit(AgentEvent::Waiting { step, why: why.clone() });
            self.told = Some(why.clone());
        }
        why
    }

    /// Waits before the next attempt, with jitter, so that nodes that fail together don't retry together.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.backoff.pause()).await;
    }
}
