//! Bounds the number of connections.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use tokio::task::{AbortHandle, JoinSet};

/// The most connections of each origin. Probes need one or two.
const CONNECTIONS: usize = 32;

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// On this host, by a loopback address.
    ThisHost,
    /// Elsewhere, or on this host by another address.
    Elsewhere,
}

impl Origin {
    /// Derives it from the client's address, which can't be forged over TCP: the kernel answers a loopback address only
    /// on loopback.
    pub(super) fn of(peer: SocketAddr) -> Self {
        let ip: IpAddr = peer.ip().to_canonical();
        if ip.is_loopback() { Self::ThisHost } else { Self::Elsewhere }
    }
}

/// The open connections. A new connection beyond the limit of its origin replaces the oldest one of that origin: each
/// connection has one request, which is answered as soon as it arrives, so the oldest connection has waited longest for
/// a silent client. Clients elsewhere never replace clients on this host.
#[derive(Debug, Default)]
pub(super) struct Budget {
    tasks: JoinSet<()>,
    here: VecDeque<AbortHandle>,
    elsewhere: VecDeque<AbortHandle>,
}

impl Budget {
    /// Serves a connection, which is closed with its task.
    pub(super) fn spawn(&mut self, origin: Origin, task: impl Future<Output = ()> + Send + 'static) {
        // Tasks that have ended have logged their errors themselves.
        while self.tasks.try_join_next().is_some() {}
        let open = match origin {
            Origin::ThisHost => &mut self.here,
            Origin::Elsewhere => &mut self.elsewhere,
        };
        open.retain(|task| !task.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(self.tasks.spawn(task));
    }

    /// Closes all connections.
    pub(super) fn close_all(&mut self) {
        self.tasks.abort_all();
    }

    /// Waits until all connections have ended by themselves.
    pub(super) async fn all_ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn only_a_loopback_address_is_this_host() {
        for (peer, want) in [
            ("127.0.0.1:1", Origin::ThisHost),
            ("127.9.9.9:1", Origin::ThisHost),
            ("[::1]:1", Origin::ThisHost),
            // What a socket for both families sees.
            ("[::ffff:127.0.0.1]:1", Origin::ThisHost),
            ("[::ffff:10.244.1.2]:1", Origin::Elsewhere),
            ("10.244.1.2:1", Origin::Elsewhere),
            ("0.0.0.0:1", Origin::Elsewhere),
            ("[fe80::1]:1", Origin::Elsewhere),
        ] {
            assert_eq!(Origin::of(peer.parse().unwrap()), want, "{peer}");
        }
    }

    /// Counts down when it is dropped.
    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn the_oldest_goes_and_each_origin_has_places_of_its_own() {
        let mut budget = Budget::default();
        let [here, elsewhere] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let mut connect = |origin, open: &Arc<AtomicUsize>| {
            open.fetch_add(1, Ordering::SeqCst);
            let counted = Counted(Arc::clone(open));
            let (send, end) = tokio::sync::oneshot::channel::<()>();
            budget.spawn(origin, async move {
                let _counted = counted;
                let _ = end.await;
            });
            send
        };
        let probes: Vec<_> = (0..CONNECTIONS).map(|_| connect(Origin::ThisHost, &here)).collect();
        let mut flood = VecDeque::new();
        for _ in 0..10 * CONNECTIONS {
            flood.push_back(connect(Origin::Elsewhere, &elsewhere));
            tokio::task::yield_now().await;
        }
        assert_eq!(elsewhere.load(Ordering::SeqCst), CONNECTIONS);
        let gone: Vec<bool> = flood.iter().map(tokio::sync::oneshot::Sender::is_closed).collect();
        let want: Vec<bool> = (0..flood.len()).map(|index| index < flood.len() - CONNECTIONS).collect();
        assert_eq!(gone, want, "the oldest ones go");
        assert!(here.load(Ordering::SeqCst) == CONNECTIONS && !probes[0].is_closed());
        // One that ended by itself makes room.
        drop(flood.remove(flood.len() - 5));
        tokio::task::yield_now().await;
        let _next = connect(Origin::Elsewhere, &elsewhere);
        tokio::task::yield_now().await;
        assert_eq!(elsewhere.load(Ordering::SeqCst), CONNECTIONS);
        assert!(!flood[flood.len() - CONNECTIONS + 1].is_closed(), "none went for it");
        budget.close_all();
        budget.all_ended().await;
        assert_eq!((here.load(Ordering::SeqCst), elsewhere.load(Ordering::SeqCst)), (0, 0));
    }
}
