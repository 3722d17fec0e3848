//! A small HTTP/1.1 client: requests written by hand, answers read to the byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use flannel_lab::kube::fake::KubeApi;
use serde_json::Value;

/// Longer than anything here takes.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The status, the reason and the message of a `Status` object.
    #[track_caller]
    pub(crate) fn failure(&self) -> (u16, String, String) {
        let status = self.json();
        assert_eq!((&status["kind"], &status["apiVersion"]), (&"Status".into(), &"v1".into()));
        assert_eq!((&status["status"], &status["code"]), (&"Failure".into(), &self.status.into()));
        let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
        (self.status, text("reason"), text("message"))
    }
}

/// A connection over any stream.
pub(crate) struct Client<S: Read + Write> {
    stream: BufReader<S>,
    pub(crate) headers: String,
}

impl Client<TcpStream> {
    pub(crate) fn to(api: &KubeApi) -> Self {
        let stream = TcpStream::connect(api.address()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self::over(stream)
    }

    /// How long an answer may take.
    pub(crate) fn patience(&self, time: Duration) {
        self.stream.get_ref().set_read_timeout(Some(time)).unwrap();
    }
}

impl<S: Read + Write> Client<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self { stream: BufReader::new(stream), headers: String::new() }
    }

    pub(crate) fn send(&mut self, method: &str, path: &str, body: &str) -> std::io::Result<()> {
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let text = format!("{method} {path} HTTP/1.1\r\nHost: lab\r\n{length}{}\r\n{body}", self.headers);
        self.stream.get_mut().write_all(text.as_bytes())
    }

    /// Status and headers.
    pub(crate) fn head(&mut self) -> std::io::Result<(u16, String)> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.stream.read_line(&mut head)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.expect("a status line"), head.to_ascii_lowercase()))
    }

    pub(crate) fn answer(&mut self) -> std::io::Result<Answer> {
        let (status, head) = self.head()?;
        let mut body = Vec::new();
        if head.contains("transfer-encoding: chunked") {
            while let Some(chunk) = self.chunk()? {
                body.extend(chunk);
            }
        } else {
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            let length = length.expect("a length").parse().unwrap();
            body.resize(length, 0);
            self.stream.read_exact(&mut body)?;
        }
        Ok(Answer { status, head, body: String::from_utf8(body).unwrap() })
    }

    /// One chunk of a body; `None` at its proper end.
    fn chunk(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let length = usize::from_str_radix(line.trim(), 16).expect("a length");
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk)?;
        chunk.truncate(length);
        Ok((length > 0).then_some(chunk))
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path, "").unwrap();
        self.answer().unwrap()
    }

    pub(crate) fn patch(&mut self, path: &str, format: &str, body: &Value) -> Answer {
        self.headers = format!("Content-Type: application/{format}\r\n");
        self.send("PATCH", path, &body.to_string()).unwrap();
        self.headers.clear();
        self.answer().unwrap()
    }

    /// Begins a watch of nodes with these parameters.
    pub(crate) fn watch(mut self, query: &str) -> Watch<S> {
        self.send("GET", &format!("/api/v1/nodes?watch=1&{query}"), "").unwrap();
        let (status, head) = self.head().unwrap();
        assert_eq!(status, 200, "{head}");
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        Watch { client: self, text: Vec::new() }
    }
}

/// A watch that is open.
pub(crate) struct Watch<S: Read + Write> {
    pub(crate) client: Client<S>,
    text: Vec<u8>,
}

impl<S: Read + Write> Watch<S> {
    /// The next line; `None` at the proper end.
    pub(crate) fn line(&mut self) -> std::io::Result<Option<String>> {
        loop {
            if let Some(at) = self.text.iter().position(|byte| *byte == b'\n') {
                let rest = self.text.split_off(at + 1);
                let line = std::mem::replace(&mut self.text, rest);
                return Ok(Some(String::from_utf8(line).unwrap()));
            }
            match self.client.chunk()? {
                Some(chunk) => self.text.extend(chunk),
                None => return Ok(None),
            }
        }
    }

    /// The next event: its type and object.
    #[track_caller]
    pub(crate) fn event(&mut self) -> (String, Value) {
        let line = self.line().unwrap().expect("an event");
        let mut event: Value = serde_json::from_str(&line).unwrap();
        (event["type"].as_str().unwrap().to_owned(), event["object"].take())
    }

    /// The next event in short: its type and the node's name.
    #[track_caller]
    pub(crate) fn short(&mut self) -> (String, String) {
        let (kind, object) = self.event();
        assert_eq!((&object["kind"], &object["apiVersion"]), (&"Node".into(), &"v1".into()));
        (kind, object["metadata"]["name"].as_str().unwrap_or_default().to_owned())
    }
}
