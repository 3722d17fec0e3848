//! A pod besieges the health port of its node.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Scene;
use flannel_lab::bed::HEALTH_PORT;

use crate::Fallible;

/// How many connections a siege has.
const MANY: usize = 1500;
/// How many may fail one after the other before the port counts as full.
const FULL: usize = 20;
/// How long a connection may take to come about.
const KNOCK: Duration = Duration::from_millis(100);
/// How often a slow request gets another byte, and how many.
const DRIP: Duration = Duration::from_millis(250);
const DRIPS: usize = 12;
/// What a request of HTTP/2 begins with (RFC 9113, 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Attackers need more descriptors than agents are given. To be called after those have started, which inherit it.
pub(super) fn raise_descriptor_limit() -> Fallible<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Gives agents what services usually get, whatever the machine of the soak allows.
pub(crate) fn lower_descriptor_limit() -> Fallible<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, 1024.min(hard), hard)?)
}

pub(super) fn run(scene: &Scene<'_>) -> Fallible<String> {
    let pods =
        scene.lab.pods().iter().map(|(number, pod)| (*number, pod.netns().clone())).collect::<Vec<_>>();
    let (mut sieges, mut connections) = (0, 0);
    for (number, pod) in pods.iter().cycle() {
        if scene.is_over() {
            break;
        }
        let to = SocketAddr::new(scene.lab.node(*number).address(), HEALTH_PORT);
        let mut open = pod.enter(|| besiege(to, scene))?;
        connections += open.len();
        sieges += 1;
        for _ in 0..DRIPS {
            open.retain_mut(|(kind, stream)| *kind != Kind::Slow || stream.write_all(b"x").is_ok());
            scene.sleep(DRIP);
        }
    }
    if connections == 0 {
        return Err("no connection to a health port came about".into());
    }
    Ok(format!("{connections} connections in {sieges} sieges"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Silent,
    HalfOpen,
    Oversized,
    Slow,
    Http2,
}

fn besiege(to: SocketAddr, scene: &Scene<'_>) -> Vec<(Kind, TcpStream)> {
    let kinds = [Kind::Silent, Kind::HalfOpen, Kind::Oversized, Kind::Slow, Kind::Http2];
    let mut open = Vec::new();
    let mut failed = 0;
    for kind in kinds.into_iter().cycle().take(MANY) {
        if scene.is_over() || failed == FULL {
            break;
        }
        match TcpStream::connect_timeout(&to, KNOCK) {
            Ok(mut stream) => {
                failed = 0;
                // What the agent does with it, even if that is to close it, is no failure of an attacker.
                let _ = begin(kind, &mut stream);
                open.push((kind, stream));
            }
            Err(_) => failed += 1,
        }
    }
    open
}

/// Sends the beginning of a request that never ends.
fn begin(kind: Kind, stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_write_timeout(Some(KNOCK))?;
    match kind {
        Kind::Silent => Ok(()),
        Kind::HalfOpen => stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: h\r\n"),
        Kind::Oversized => {
            stream.write_all(b"GET /readyz HTTP/1.1\r\nX: ")?;
            stream.write_all(&vec![b'x'; 380 << 10])
        }
        Kind::Slow => stream.write_all(b"GET /readyz HTTP/1.1\r\nX: "),
        Kind::Http2 => stream.write_all(HTTP2),
    }
}
