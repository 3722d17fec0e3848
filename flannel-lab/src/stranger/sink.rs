//! An ear: counts the datagrams that arrive somewhere with a mark in them.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::LabError;
use crate::netns::Netns;

/// How long the thread waits at most before it looks whether to stop.
const NAP: Duration = Duration::from_millis(50);

/// Listens on a UDP port at all addresses of a namespace until it is dropped.
#[derive(Debug)]
pub struct Sink {
    name: String,
    heard: Arc<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    stop: AtomicBool,
    count: AtomicU64,
    last: Mutex<Option<IpAddr>>,
}

impl Sink {
    /// Begins to listen. Only datagrams that begin with `mark` count.
    pub fn open(netns: &Netns, port: u16, mark: &'static [u8]) -> Result<Self, LabError> {
        let what = format!("listening on UDP port {port} in {}", netns.name());
        let socket = netns.enter(|| listen(port))?.map_err(LabError::io(what))?;
        let heard = Arc::new(Heard::default());
        let theirs = Arc::clone(&heard);
        thread::spawn(move || count(&socket, mark, &theirs));
        Ok(Self { name: netns.name().to_owned(), heard })
    }

    /// The namespace it is in.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many datagrams arrived.
    pub fn count(&self) -> u64 {
        self.heard.count.load(Ordering::Relaxed)
    }

    /// Where the last one came from, as it seemed there.
    pub fn last_source(&self) -> Option<IpAddr> {
        *self.heard.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // The thread ends by itself soon.
        self.heard.stop.store(true, Ordering::Relaxed);
    }
}

fn listen(port: u16) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.set_read_timeout(Some(NAP))?;
    Ok(socket.into())
}

fn count(socket: &UdpSocket, mark: &[u8], heard: &Heard) {
    let mut buffer = [0; 2048];
    while !heard.stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if buffer[..length].starts_with(mark) => {
                *heard.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(from.ip().to_canonical());
                heard.count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // An ICMP error for something that was sent from here, which nothing is.
            Err(_) => thread::sleep(NAP),
        }
    }
}
