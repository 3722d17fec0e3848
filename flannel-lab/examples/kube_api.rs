//! An API server with so many nodes, whose kubelets report all the time, for agents and for `curl`:
//!
//! ```text
//! cargo run --release -p flannel-lab --features kube-api --example kube_api -- --nodes 5000 --updates 100 --watchers 50 --seconds 10
//! curl http://127.0.0.1:6443/api/v1/nodes/node7
//! curl -N 'http://127.0.0.1:6443/api/v1/nodes?watch=1&resourceVersion=0&allowWatchBookmarks=true'
//! ```
//!
//! It says each second what was asked, and what its thread costs.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use flannel_lab::kube::fake::{KubeApi, KubeApiOptions, kubelet_node, touch_status};

#[derive(Parser)]
struct Options {
    /// How many nodes.
    #[arg(long, default_value_t = 100)]
    nodes: u32,
    /// The size of a node in bytes.
    #[arg(long, default_value_t = 3000)]
    size: usize,
    /// How many of them change a second.
    #[arg(long, default_value_t = 10)]
    updates: u32,
    /// How many clients of its own watch them all.
    #[arg(long, default_value_t = 0)]
    watchers: usize,
    /// How long to run; until it is interrupted unless told.
    #[arg(long)]
    seconds: Option<u64>,
    /// The port on loopback.
    #[arg(long, default_value_t = 6443)]
    port: u16,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let api = KubeApi::start(KubeApiOptions { port: Some(options.port), ..KubeApiOptions::default() })?;
    for n in 0..options.nodes {
        let cidr = format!("10.{}.{}.0/24", n >> 8 & 0xff, n & 0xff);
        api.put_node(kubelet_node(&format!("node{n}"), &[&cidr], options.size));
    }
    println!("{} nodes at {}", options.nodes, api.url());
    let heard = Arc::new(AtomicU64::new(0));
    for _ in 0..options.watchers {
        let (stream, heard) = (watch(&api)?, heard.clone());
        thread::spawn(move || listen(stream, &heard));
    }

    let start = Instant::now();
    let (mut updates, mut last) = (0, (cpu(), 0));
    for second in 1.. {
        while start.elapsed() < Duration::from_secs(second) {
            let due = start.elapsed().as_secs_f64() * f64::from(options.updates);
            while options.nodes > 0 && (updates as f64) < due {
                let name = format!("node{}", updates % u64::from(options.nodes));
                api.edit_node(&name, |node| touch_status(node, updates));
                updates += 1;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let now = (cpu(), heard.load(Ordering::Relaxed));
        println!(
            "{second} s: {updates} changes, {} watches, {} MB heard, {} % of a core; {:?}",
            api.open_watches(),
            (now.1 - last.1) / 1_000_000,
            // In hundredths of a second, as the kernel counts.
            now.0 - last.0,
            api.counts(),
        );
        last = now;
        if options.seconds == Some(second) {
            break;
        }
    }
    Ok(())
}

/// A watch of everything that changes from now on.
fn watch(api: &KubeApi) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(api.address())?;
    write!(
        stream,
        "GET /api/v1/nodes?watch=1&resourceVersion={} HTTP/1.1\r\nHost: lab\r\n\r\n",
        api.revision()
    )?;
    Ok(stream)
}

/// Counts the bytes.
fn listen(mut stream: TcpStream, heard: &AtomicU64) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length) = stream.read(&mut buffer) {
        if length == 0 {
            return;
        }
        heard.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// The CPU time of the server's thread in hundredths of a second.
fn cpu() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let own = stats.filter(|stat| stat.contains("(kube-api)"));
    own.flat_map(|stat| {
        let fields: Vec<String> = stat.split(' ').skip(13).take(2).map(str::to_owned).collect();
        fields.into_iter().filter_map(|field| field.parse::<u64>().ok())
    })
    .sum()
}
