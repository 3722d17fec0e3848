//! The port: opened in a namespace, closed and opened again, with TLS or without.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::connection::{Connections, Guarded};
use crate::LabError;
use crate::netns::Netns;

/// Room for connections that wait to be accepted: a thousand nodes may come at once.
const BACKLOG: i32 = 4096;

/// A connection, with TLS or without.
pub(super) enum Io {
    Plain(Guarded),
    Tls(Box<TlsStream<Guarded>>),
}

/// Opens and closes the port.
#[derive(Debug)]
pub(super) struct Port {
    netns: Option<Netns>,
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Ends the task that accepts, which then says so.
    stop: Mutex<Option<oneshot::Sender<std::sync::mpsc::Sender<()>>>>,
}

struct Shared {
    connections: Arc<Connections>,
    tls: Mutex<Option<TlsAcceptor>>,
    ready: mpsc::UnboundedSender<Io>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("connections", &self.connections).finish_non_exhaustive()
    }
}

impl Port {
    /// A port that is closed yet, and the connections that will come by it.
    pub(super) fn new(
        netns: Option<Netns>,
        address: SocketAddr,
        connections: Arc<Connections>,
        tls: Option<TlsAcceptor>,
    ) -> (Self, Incoming) {
        let (ready, incoming) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { connections, tls: Mutex::new(tls), ready });
        (Self { netns, address, shared, stop: Mutex::default() }, Incoming { address, incoming })
    }

    /// Opens it, if it is closed.
    pub(super) fn open(&self, runtime: &Handle) -> Result<(), LabError> {
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        if stop.is_some() {
            return Ok(());
        }
        let bind = || bind(self.address);
        let socket = match &self.netns {
            Some(netns) => netns.enter(bind)?,
            None => bind(),
        };
        let socket = socket.map_err(LabError::io(format!("listening on {}", self.address)))?;
        let (sender, stopped) = oneshot::channel();
        runtime.spawn(accept(socket, self.shared.clone(), stopped));
        *stop = Some(sender);
        Ok(())
    }

    /// Closes it, if it is open: connections are refused once this returns. Those that are there go on.
    pub(super) fn close(&self) {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (done, closed) = std::sync::mpsc::channel();
        if stop.is_some_and(|stop| stop.send(done).is_ok()) {
            // An error says that the task is gone, and the socket with it.
            let _ = closed.recv();
        }
    }

    /// Serves connections that come from now on with other keys, or without TLS.
    pub(super) fn set_tls(&self, tls: Option<TlsAcceptor>) {
        *self.shared.tls.lock().unwrap_or_else(PoisonError::into_inner) = tls;
    }
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Connections that linger from before must not keep the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn accept(
    socket: std::net::TcpListener,
    shared: Arc<Shared>,
    mut stopped: oneshot::Receiver<std::sync::mpsc::Sender<()>>,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(socket) else { return };
    loop {
        tokio::select! {
            biased;
            done = &mut stopped => {
                // Closing it is not enough: a child that another thread forks has a copy until it executes its program.
                let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
                drop(listener);
                if let Ok(done) = done {
                    let _ = done.send(());
                }
                return;
            }
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => {
                    let _ = tcp.set_nodelay(true);
                    hand_over(shared.connections.guard(tcp), &shared);
                }
                // Out of descriptors, mostly: others have to end first.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            },
        }
    }
}

/// Hands a connection to the server, after the TLS handshake if there is one.
fn hand_over(connection: Guarded, shared: &Arc<Shared>) {
    let tls = shared.tls.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(tls) = tls else {
        let _ = shared.ready.send(Io::Plain(connection));
        return;
    };
    let ready = shared.ready.clone();
    tokio::spawn(async move {
        // Whoever fails to shake hands is told by TLS itself.
        if let Ok(stream) = tls.accept(connection).await {
            let _ = ready.send(Io::Tls(Box::new(stream)));
        }
    });
}

/// The connections of a [`Port`], in the order in which they are ready.
pub(super) struct Incoming {
    address: SocketAddr,
    incoming: mpsc::UnboundedReceiver<Io>,
}

impl Listener for Incoming {
    type Io = Io;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Io, SocketAddr) {
        match self.incoming.recv().await {
            Some(io) => (io, self.address),
            // The port is gone: nobody comes any more.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// What is known of a client from its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    /// Whether it showed a certificate of our authority.
    pub(super) has_certificate: bool,
}

impl Connected<IncomingStream<'_, Incoming>> for Client {
    fn connect_info(stream: IncomingStream<'_, Incoming>) -> Self {
        let has_certificate = match stream.io() {
            Io::Plain(_) => false,
            Io::Tls(stream) => stream.get_ref().1.peer_certificates().is_some(),
        };
        Self { has_certificate }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
