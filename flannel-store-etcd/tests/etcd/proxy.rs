//! A way to the store that can be cut or slowed down.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to what comes along; `None` cuts the way.
type Way = Option<Duration>;

/// Passes connections on to a server until it is dropped.
pub(crate) struct Proxy {
    pub(crate) url: String,
    way: watch::Sender<Way>,
    /// Counts how often the connections of the time were forgotten.
    epoch: watch::Sender<u32>,
}

impl Proxy {
    pub(crate) async fn to(server: &str) -> Self {
        let server: SocketAddr = server.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (way, state) = watch::channel(Some(Duration::ZERO));
        let (epoch, epochs) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if state.borrow().is_none() {
                    continue;
                }
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let ((from, to), (back_from, back_to)) = (client.into_split(), server.into_split());
                let mut epochs = epochs.clone();
                epochs.mark_unchanged();
                tokio::spawn(pump(from, back_to, state.clone(), epochs.clone()));
                tokio::spawn(pump(back_from, to, state.clone(), epochs));
            }
        });
        Self { url, way, epoch }
    }

    /// Cuts all connections and lets no new ones through.
    pub(crate) fn cut(&self) {
        self.way.send_replace(None);
    }

    /// Forgets all connections that there are, so that nothing comes back on them and nobody is told, as when the
    /// client's address is gone. New ones are as before.
    pub(crate) fn forget(&self) {
        self.epoch.send_modify(|count| *count += 1);
    }

    /// Lets everything through, each piece after this time.
    pub(crate) fn delay(&self, time: Duration) {
        self.way.send_replace(Some(time));
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut way: watch::Receiver<Way>,
    mut epochs: watch::Receiver<u32>,
) {
    let mut piece = vec![0; 64 << 10];
    loop {
        let size = tokio::select! {
            _ = way.wait_for(Option::is_none) => return,
            Ok(()) = epochs.changed() => None,
            read = from.read(&mut piece) => Some(read.unwrap_or(0)),
        };
        let Some(size) = size else {
            // Both ends stay open.
            return std::future::pending().await;
        };
        let Some(delay) = *way.borrow() else { return };
        tokio::time::sleep(delay).await;
        if size == 0 || to.write_all(&piece[..size]).await.is_err() {
            return;
        }
    }
}
