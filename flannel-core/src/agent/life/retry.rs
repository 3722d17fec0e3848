//! Steps of the start that are tried again and again.

use std::time::Duration;

use super::{AgentEvent, Board};
use crate::subnet::{SubnetError, chain};

/// The first pause between tries, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Tries again and again, with growing pauses, and tells only what is new.
pub(super) struct Retry<'a> {
    board: &'a Board,
    tries: u32,
    told: Option<String>,
}

impl<'a> Retry<'a> {
    pub(super) fn new(board: &'a Board) -> Self {
        Self { board, tries: 0, told: None }
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
        let pause = PAUSES.0.saturating_mul(1 << self.tries.min(8)).min(PAUSES.1);
        self.tries += 1;
        tokio::time::sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
    }
}
