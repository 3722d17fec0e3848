//! Connections that can be stalled and cut, whatever is going on in them.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// All connections of a server.
#[derive(Debug, Default)]
pub(super) struct Connections {
    stalled: AtomicBool,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Valve>>>,
}

/// What can be done to one connection from outside.
#[derive(Debug, Default)]
struct Valve {
    cut: AtomicBool,
    forgotten: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Valve {
    fn wake(&self) {
        self.reader.wake();
        self.writer.wake();
    }
}

impl Connections {
    /// From now on nothing is read or written; or all goes on where it was.
    pub(super) fn stall(&self, stalled: bool) {
        if self.stalled.swap(stalled, Ordering::SeqCst) != stalled {
            self.each(Valve::wake);
        }
    }

    /// Ends all that are open. Not one byte is written any more.
    pub(super) fn cut(&self) {
        self.each(|valve| {
            valve.cut.store(true, Ordering::SeqCst);
            valve.wake();
        });
    }

    /// Those that are open stay so, and nothing is read or written any more.
    pub(super) fn forget(&self) {
        self.each(|valve| {
            valve.forgotten.store(true, Ordering::SeqCst);
            valve.wake();
        });
    }

    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn each(&self, act: impl Fn(&Valve)) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(|valve| act(valve));
    }

    /// Takes charge of a connection.
    pub(super) fn guard(self: &Arc<Self>, tcp: TcpStream) -> Guarded {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let valve = Arc::new(Valve::default());
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id, valve.clone());
        Guarded { tcp, id, valve, all: self.clone() }
    }
}

/// A TCP connection behind its valve.
#[derive(Debug)]
pub(super) struct Guarded {
    tcp: TcpStream,
    id: u64,
    valve: Arc<Valve>,
    all: Arc<Connections>,
}

impl Guarded {
    /// Whether the connection may go on. The waker is there before the look, so that no change is missed.
    fn pass(&self, waker: &AtomicWaker, context: &Context<'_>) -> Poll<io::Result<()>> {
        waker.register(context.waker());
        if self.valve.cut.load(Ordering::SeqCst) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let is_silent =
            self.all.stalled.load(Ordering::SeqCst) || self.valve.forgotten.load(Ordering::SeqCst);
        if is_silent { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.all.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.pass(&self.valve.reader, context))?;
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.pass(&self.valve.writer, context))?;
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.pass(&self.valve.writer, context))?;
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.pass(&self.valve.writer, context))?;
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.pass(&self.valve.writer, context))?;
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
