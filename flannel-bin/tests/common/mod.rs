//! What the tests of the process share.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// The program under test.
pub(crate) const FLANNELD: &str = env!("CARGO_BIN_EXE_flanneld");

/// Status and body of a GET request.
pub(crate) fn get(server: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(server)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}
