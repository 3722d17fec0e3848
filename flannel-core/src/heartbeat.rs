//! Whether a loop still turns: it is asked, and only the loop itself answers.
//!
//! A process that runs is no proof: a loop can wait for something that never comes. A supervisor that should restart
//! such an agent (systemd's watchdog, for example) asks [`Agent::heartbeat`](crate::agent::Agent::heartbeat).

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;

/// Asks a loop whether it turns. Clones ask the same loop.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// How often somebody asked.
    asked: Arc<watch::Sender<u64>>,
    /// The last question that was answered.
    answered: watch::Receiver<u64>,
}

/// Answers from inside of a loop. When it is dropped, the loop has ended, and nobody waits for it any more.
#[derive(Debug)]
pub struct Heart {
    asked: watch::Receiver<u64>,
    answered: watch::Sender<u64>,
}

/// Connects a loop with those who ask.
pub fn pair() -> (Pulse, Heart) {
    let ((asks, asked), (answers, answered)) = (watch::channel(0), watch::channel(0));
    (Pulse { asked: Arc::new(asks), answered }, Heart { asked, answered: answers })
}

impl Pulse {
    /// Waits until the loop has turned once more, or has ended. It waits for ever if the loop hangs, so the caller sets a
    /// deadline. Dropping the future is fine.
    pub async fn check(&self) {
        let mut question = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            question = *asked;
        });
        // An error says that the loop has ended, which others report.
        let _ = self.answered.clone().wait_for(|answered| *answered >= question).await;
    }
}

impl Heart {
    /// Waits until somebody asks. Dropping the future loses no question.
    pub async fn asked(&self) {
        let mut asked = self.asked.clone();
        let answered = *self.answered.borrow();
        if asked.wait_for(|asked| *asked > answered).await.is_err() {
            // Nobody is left who could ask.
            pending::<()>().await;
        }
    }

    /// Answers all questions so far. A loop calls it where it turns, and in long work after each part of it.
    pub fn beat(&self) {
        let asked = *self.asked.borrow();
        self.answered.send_if_modified(|answered| std::mem::replace(answered, asked) != asked);
    }

    /// Answers for as long as it is polled, beside a future that is polled by the same task.
    pub async fn beat_always(&self) -> Infallible {
        loop {
            self.asked().await;
            self.beat();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn only_a_loop_that_turns_answers() {
        let (pulse, heart) = pair();
        assert!(heart.asked().now_or_never().is_none(), "nobody asks");
        let (mut first, mut second) = (Box::pin(pulse.check()), Box::pin(pulse.check()));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        heart.asked().await;
        heart.asked().await;
        heart.beat();
        assert!(heart.asked().now_or_never().is_none(), "all are answered");
        first.await;
        second.await;
        // An answer before the question is none.
        heart.beat();
        let third = pulse.check();
        futures::pin_mut!(third);
        assert!(third.as_mut().now_or_never().is_none());
        drop(heart);
        third.await;
    }

    #[tokio::test]
    async fn whoever_has_nobody_to_answer_waits() {
        let (pulse, heart) = pair();
        drop(pulse);
        assert!(heart.beat_always().now_or_never().is_none());
    }
}
