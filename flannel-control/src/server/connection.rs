//! One connection: a request in, lines out.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Interest, Ready};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use super::Deadlines;
use crate::protocol::{Line, MOST_REQUEST, Refusal, RefusalKind, Request};

/// How much of an answer is collected before it is sent.
const CHUNK: usize = 64 << 10;

/// A client.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Arc<UnixStream>,
    deadlines: Deadlines,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, deadlines: Deadlines) -> Self {
        Self { stream: Arc::new(stream), deadlines }
    }

    /// Reads the request: a line, or all until the client shuts down its side. `None` if the client sent nothing, is too
    /// slow or is gone.
    pub(super) async fn request(&self) -> Option<Result<Request, Refusal>> {
        let mut line = Vec::new();
        let mut stream = BufReader::new(ReadHalf(&self.stream)).take(MOST_REQUEST as u64 + 1);
        timeout(self.deadlines.request, stream.read_until(b'\n', &mut line)).await.ok()?.ok()?;
        if line.is_empty() {
            return None;
        }
        if line.len() > MOST_REQUEST {
            let why = format!("the request has more than {MOST_REQUEST} bytes");
            return Some(Err(Refusal::new(RefusalKind::Malformed, why)));
        }
        Some(Request::parse(&line))
    }

    /// Sends an answer. It fails if the client is gone, or does not read it in time.
    pub(super) async fn answer<T: Serialize + Send + Sync + 'static>(
        &self,
        answer: Arc<T>,
    ) -> io::Result<()> {
        self.write(move |out| Ok(serde_json::to_writer(out, &Line::answer(&*answer))?)).await
    }

    /// Sends a refusal.
    pub(super) async fn error(&self, refusal: Refusal) -> io::Result<()> {
        self.write(move |out| Ok(serde_json::to_writer(out, &Line::error(&refusal))?)).await
    }

    async fn write(
        &self,
        line: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (stream, runtime) = (Arc::clone(&self.stream), Handle::current());
        let deadline = Instant::now() + self.deadlines.answer;
        let write = move || {
            let mut out = BufWriter::with_capacity(CHUNK, Patient { stream, runtime, deadline });
            line(&mut out)?;
            out.write_all(b"\n")?;
            out.flush()
        };
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
    }

    /// Whether the client has closed its connection. One that has only shut down its sending side still reads.
    pub(super) async fn is_gone(&self) -> bool {
        self.stream.ready(Interest::WRITABLE).await.is_ok_and(Ready::is_write_closed)
    }
}

/// Reads from a shared stream.
struct ReadHalf<'a>(&'a UnixStream);

impl tokio::io::AsyncRead for ReadHalf<'_> {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        loop {
            std::task::ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return std::task::Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return std::task::Poll::Ready(Err(error)),
            }
        }
    }
}

/// Writes from a thread that may block, and waits for the client until the deadline.
struct Patient {
    stream: Arc<UnixStream>,
    runtime: Handle,
    deadline: Instant,
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let writable = async { timeout_at(self.deadline, self.stream.writable()).await };
                    self.runtime
                        .block_on(writable)
                        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the client does not read"))??;
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
