//! An agent of one's own whose metrics are served to whoever asks, in a few lines: a program that has an HTTP server already
//! calls [`answer`] there.
//!
//! Needs `CAP_NET_ADMIN`, so try it in a namespace:
//! `unshare --user --map-root-user --net cargo run -p flannel-metrics --example scrape -- STORE 127.0.0.1:9100`
//! where `STORE/config` is a network config such as `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`.

use std::error::Error;
use std::sync::Arc;

use flannel_backend_vxlan::VxlanBackend;
use flannel_core::agent::Agent;
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};
use flannel_metrics::{AgentMetrics, Format, Options};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: scrape STORE ADDRESS:PORT";
    let mut args = std::env::args().skip(1);
    let (store, address) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let store = LocalSubnetManager::new(LocalOptions::new(store));
    let agent = Agent::builder(Arc::new(store)).backend(VxlanBackend::new()).start()?;
    let metrics = AgentMetrics::new(agent.status(), Options::default());
    tokio::spawn(metrics.count_events(agent.events()));
    let listener = TcpListener::bind(address).await?;
    loop {
        // One client after the other: this is an example.
        serve(listener.accept().await?.0, &metrics).await?;
    }
}

/// Answers one request.
pub async fn serve(mut client: TcpStream, metrics: &AgentMetrics) -> std::io::Result<()> {
    let (reader, mut writer) = client.split();
    let (mut lines, mut accept) = (BufReader::new(reader).lines(), String::new());
    while let Some(line) = lines.next_line().await?.filter(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("accept")
        {
            accept.push_str(value);
        }
    }
    let (kind, body) = answer(metrics, &accept);
    let head = format!("HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
    writer.write_all((head + &body).as_bytes()).await
}

/// The type and the body of an answer to a client with this header `Accept`.
pub fn answer(metrics: &AgentMetrics, accept: &str) -> (&'static str, String) {
    let format = Format::accepted(accept);
    (format.content_type(), metrics.render(format))
}
