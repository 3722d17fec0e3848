//! What each member says about itself, for an operator who looks for a fault.

use std::time::{Duration, SystemTime};

use etcd_client::{Client, Error};
use flannel_core::secret::ServerUrl;
use flannel_core::subnet::{ClockGap, Server, ServerAnswer};
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::Code;

use super::client::Clients;
use super::error::describe;

/// How much of an answer is read, in bytes: the header with the time is at its beginning.
const HEAD: u64 = 4 << 10;

impl Clients {
    /// Asks all members at once.
    pub(super) async fn examine(&self) -> Vec<Server> {
        join_all((0..self.count()).map(|index| self.examine_one(index))).await
    }

    async fn examine_one(&self, index: usize) -> Server {
        let name = ServerUrl::from(self.url(index)).to_string();
        let limit = self.limit();
        let asked = async {
            let (client, clock) = tokio::join!(self.client(index), clock(self.url(index), limit));
            let client = client.map_err(|error| describe(&error))?;
            // The first request opens the connection, which is not what is measured.
            ask(&client).await?;
            let start = Instant::now();
            let version = ask(&client).await?;
            Ok(ServerAnswer::new(start.elapsed(), version).clock(clock))
        };
        let late = |_| Err(format!("no answer within {limit:?}"));
        let answer = timeout(limit * 2, asked).await.unwrap_or_else(late);
        Server { answer: answer.map_err(|why| format!("ask {name} for its status: {why}")), name }
    }
}

/// The version of a member; empty if it answers that this user must not know it.
async fn ask(client: &Client) -> Result<String, String> {
    match client.clone().status().await {
        Ok(status) => Ok(status.version().to_owned()),
        Err(Error::GRpcStatus(status)) if status.code() == Code::PermissionDenied => Ok(String::new()),
        Err(error) => Err(describe(&error)),
    }
}

/// The clock of a member, by the header `Date` of its answer to a plain HTTP request. gRPC has no such header, so that a
/// member that only speaks TLS does not tell the time here.
async fn clock(url: &str, limit: Duration) -> Option<ClockGap> {
    let address = url.strip_prefix("http://")?.trim_end_matches('/');
    let host = address.rsplit_once('@').map_or(address, |(_, host)| host);
    let ask = async {
        let mut stream = TcpStream::connect(host).await.ok()?;
        let asked = SystemTime::now();
        let request = format!("GET /version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.take(HEAD).read_to_end(&mut answer).await.ok()?;
        date(&String::from_utf8_lossy(&answer)).map(|date| ClockGap::between(date, asked, SystemTime::now()))
    };
    timeout(limit, ask).await.ok()?
}

/// The header `Date` of an answer (RFC 9110 section 6.6.1).
fn date(answer: &str) -> Option<SystemTime> {
    let mut headers = answer.split("\r\n").skip(1).take_while(|line| !line.is_empty());
    let date = headers.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then(|| value.trim())
    })?;
    httpdate::parse_http_date(date).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_in_the_headers() {
        let with = |header: &str| date(&format!("HTTP/1.1 200 OK\r\n{header}\r\n\r\nDate: no header"));
        let want = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(with("date: Sun, 06 Nov 1994 08:49:37 GMT"), Some(want));
        assert_eq!(with("Date: yesterday"), None);
        assert_eq!(with("Server: etcd"), None);
    }
}
