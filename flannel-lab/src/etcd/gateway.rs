//! Writes many keys, or values of any bytes, into the store through the JSON gateway of its client port, without
//! starting a process for each key.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::Etcd;
use crate::LabError;

/// The most operations that etcd accepts in a transaction (`--max-txn-ops`).
const MOST: usize = 128;
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(20);

impl Etcd {
    /// Puts keys, 128 in a revision. Keys in one call must differ.
    pub fn put_many<K: AsRef<[u8]>, V: AsRef<[u8]>>(&self, pairs: &[(K, V)]) -> Result<(), LabError> {
        pairs.chunks(MOST).try_for_each(|chunk| {
            let put = |(key, value): &(K, V)| {
                json!({ "requestPut": { "key": base64(key.as_ref()), "value": base64(value.as_ref()) } })
            };
            let all = chunk.iter().map(put).collect::<Vec<_>>();
            self.post("/v3/kv/txn", &json!({ "success": all }))
        })
    }

    /// Puts a key and a value of any bytes.
    pub fn put_bytes(&self, key: &[u8], value: &[u8]) -> Result<(), LabError> {
        self.post("/v3/kv/put", &json!({ "key": base64(key), "value": base64(value) }))
    }

    /// Deletes a key of any bytes.
    pub fn del_bytes(&self, key: &[u8]) -> Result<(), LabError> {
        self.post("/v3/kv/deleterange", &json!({ "key": base64(key) }))
    }

    /// Deletes all keys with this prefix, in one revision.
    pub fn del_many(&self, prefix: &[u8]) -> Result<(), LabError> {
        let mut end = prefix.to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        self.post("/v3/kv/deleterange", &json!({ "key": base64(prefix), "range_end": base64(&end) }))
    }

    fn post(&self, path: &str, body: &Value) -> Result<(), LabError> {
        let address = self.endpoint.strip_prefix("http://").and_then(|address| address.parse().ok());
        let address: SocketAddr = address.ok_or_else(|| {
            LabError::Invalid(format!("the gateway of {} is not plain HTTP", self.endpoint))
        })?;
        let what = || LabError::io(format!("POST {path} to {address}"));
        let connect = || TcpStream::connect_timeout(&address, LIMIT);
        let stream = match &self.netns {
            Some(netns) => netns.enter(connect)?,
            None => connect(),
        };
        let answer = exchange(&stream.map_err(what())?, path, &body.to_string()).map_err(what())?;
        let is_done = answer.lines().next().is_some_and(|line| line.contains(" 200 "));
        if is_done { Ok(()) } else { Err(LabError::unexpected(format!("the answer to POST {path}"), answer)) }
    }
}

/// In HTTP/1.0, whose answer ends with the connection.
fn exchange(mut stream: &TcpStream, path: &str, body: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(LIMIT))?;
    let head = format!(
        "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Base64 (RFC 4648 section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32, shift: u32| DIGITS[(bits >> shift & 63) as usize];
    let mut text = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    let mut chunks = bytes.chunks_exact(3);
    for chunk in &mut chunks {
        let bits = u32::from_be_bytes([0, chunk[0], chunk[1], chunk[2]]);
        text.extend_from_slice(&[digit(bits, 18), digit(bits, 12), digit(bits, 6), digit(bits, 0)]);
    }
    match *chunks.remainder() {
        [a] => {
            let bits = u32::from_be_bytes([0, a, 0, 0]);
            text.extend_from_slice(&[digit(bits, 18), digit(bits, 12), b'=', b'=']);
        }
        [a, b] => {
            let bits = u32::from_be_bytes([0, a, b, 0]);
            text.extend_from_slice(&[digit(bits, 18), digit(bits, 12), digit(bits, 6), b'=']);
        }
        _ => {}
    }
    String::from_utf8(text).expect("digits are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_written() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("ÿÿ&>", "w7/DvyY+")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
