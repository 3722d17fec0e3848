//! A store that somebody fills with garbage, beside one without any, in every round: how long a good lease takes to the
//! kernel then, and what the agent costs.
//!
//! The agent runs while the garbage is written. The first good lease is written right behind it, so it counts how far
//! the agent is behind; further ones come and go when it has settled. Then the agent is killed and finds the garbage at
//! its start.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use etcd_client::TxnOp;
use flannel_benches::announce::Listener;
use flannel_benches::etcd::{delete, put, talk, transact};
use flannel_benches::leases::{FREE, base, config, key, mac, subnet, underlay, value};
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, bed, in_lab, proc, wait_ready};
use flannel_core::dataplane::{Object, ObjectKey};
use flannel_core::kernel::KernelEvent;
use flannel_lab::bed::Bed;
use flannel_lab::cluster::Cluster;
use flannel_lab::flanneld::{self, Stores};
use flannel_lab::kube::fake::kubelet_node;
use flannel_lab::kube::store::KubeStore;
use flannel_lab::store::{EtcdStore, Folder, Store};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Etcd,
    Kube,
    Local,
}

/// A good lease among garbage.
#[derive(Parser)]
struct Options {
    /// Unreadable records.
    #[arg(long, default_value_t = 100_000)]
    garbage: u32,
    /// Good leases that are there before.
    #[arg(long, default_value_t = 100)]
    leases: u32,
    /// Rounds of each.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Single good leases that come and go.
    #[arg(long, default_value_t = 20)]
    singles: u32,
    /// The stores.
    #[arg(long, value_delimiter = ',', default_value = "etcd,kube,local")]
    stores: Vec<Kind>,
}

#[derive(Default)]
struct Figures {
    first: Sample,
    single: Sample,
    gone: Sample,
    rss: Sample,
    peak: Sample,
    start: Sample,
    start_peak: Sample,
}

fn main() -> Fallible<ExitCode> {
    let options = Options::parse();
    in_lab(Stores::All, || {
        let flanneld = flanneld::path(None)?;
        for kind in &options.stores {
            let mut figures = [Figures::default(), Figures::default()];
            for round in 1..=options.rounds {
                for (garbage, figures) in [0, options.garbage].into_iter().zip(&mut figures) {
                    eprintln!("{kind:?}, round {round} of {}: {garbage} records of garbage", options.rounds);
                    let run = match kind {
                        Kind::Etcd => run::<EtcdStore>,
                        Kind::Kube => run::<KubeStore>,
                        Kind::Local => run::<Folder>,
                    };
                    run(&flanneld, garbage, &options, figures)?;
                }
            }
            let [clean, full] = figures;
            println!("\n{kind:?}; without garbage | with {} records of it", options.garbage);
            let row = |name: &str, of: fn(&Figures) -> &Sample| {
                println!("  {name:<44} {:.2} | {:.2}", of(&clean), of(&full));
            };
            row("the good lease right behind it, ms", |it| &it.first);
            row("one lease added, ms", |it| &it.single);
            row("one lease removed, ms", |it| &it.gone);
            row("agent, resident memory, MiB", |it| &it.rss);
            row("agent, peak memory, MiB", |it| &it.peak);
            row("agent killed, start again, s", |it| &it.start);
            row("its peak memory, MiB", |it| &it.start_peak);
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// A store that takes much at once.
trait Bulk: Store + Sized {
    /// A store beside a cluster.
    fn build(cluster: &Cluster) -> Fallible<Self>;
    /// Writes garbage.
    fn litter(bed: &Bed<Self>, count: u32) -> Fallible<()>;
    /// Writes good leases.
    fn add(bed: &Bed<Self>, leases: Range<u32>) -> Fallible<()>;
    /// Deletes a good lease.
    fn remove(bed: &Bed<Self>, n: u32) -> Fallible<()>;
}

fn run<S: Bulk>(flanneld: &Path, garbage: u32, options: &Options, figures: &mut Figures) -> Fallible<()> {
    let cluster = Cluster::builder().nodes(1).build()?;
    let store = S::build(&cluster)?;
    store.put_config(&config("vxlan"))?;
    let bed = bed(cluster, store, flanneld, &[]);
    S::add(&bed, 0..options.leases)?;
    let start = || bed.flanneld(1).env("NODE_NAME", "n0").start();
    let agent = start()?;
    wait_ready(bed.netns(1))?;
    let listener = Listener::start(bed.netns(1))?;
    let wait = |n: u32, is_put: bool| -> Fallible<Instant> {
        loop {
            let (at, event) = listener.news.recv_timeout(DEADLINE)?;
            let dst = match event {
                KernelEvent::Put(Object::Route(route)) if is_put => route.dst.base(),
                KernelEvent::Gone(ObjectKey::Route(dst, _)) if !is_put => dst.base(),
                _ => continue,
            };
            if dst.to_string() == base(n) {
                return Ok(at);
            }
        }
    };
    S::litter(&bed, garbage)?;
    for n in options.leases..options.leases + options.singles {
        let begin = Instant::now();
        S::add(&bed, n..n + 1)?;
        let took = millis(begin, wait(n, true)?);
        if n == options.leases { &mut figures.first } else { &mut figures.single }.push(took);
        if n == options.leases {
            // As after a while: what was written a moment ago is looked at twice.
            sleep(Duration::from_secs(3));
        }
        let begin = Instant::now();
        S::remove(&bed, n)?;
        figures.gone.push(millis(begin, wait(n, false)?));
        sleep(Duration::from_millis(20));
    }
    figures.rss.push(mebibytes(agent.rss()?));
    figures.peak.push(mebibytes(proc::peak_memory(agent.pid())?));
    agent.kill()?;
    drop(agent);
    let agent = start()?;
    figures.start.push(wait_ready(bed.netns(1))?);
    figures.start_peak.push(mebibytes(proc::peak_memory(agent.pid())?));
    Ok(())
}

fn millis(start: Instant, end: Instant) -> f64 {
    end.saturating_duration_since(start).as_secs_f64() * 1e3
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Bulk for EtcdStore {
    fn build(cluster: &Cluster) -> Fallible<Self> {
        Ok(Self::start(cluster, &[])?)
    }

    fn litter(bed: &Bed<Self>, count: u32) -> Fallible<()> {
        let name = |n| Self::key(&format!("garbage-{n:06}"));
        let ops: Vec<TxnOp> = (0..count).map(|n| TxnOp::put(name(n), "garbage", None)).collect();
        talk(bed, async |client| transact(client, &ops).await)
    }

    fn add(bed: &Bed<Self>, leases: Range<u32>) -> Fallible<()> {
        talk(bed, async |client| put(client, "vxlan", leases).await)
    }

    fn remove(bed: &Bed<Self>, n: u32) -> Fallible<()> {
        talk(bed, async |client| delete(client, n..n + 1).await)
    }
}

impl Bulk for KubeStore {
    fn build(cluster: &Cluster) -> Fallible<Self> {
        let store = Self::without_nodes(cluster)?;
        // The first subnet of the network, which is no lease's.
        store.api().put_node(kubelet_node("n0", &[FREE], 2000));
        Ok(store)
    }

    fn litter(bed: &Bed<Self>, count: u32) -> Fallible<()> {
        for n in 0..count {
            let mut node = kubelet_node(&format!("garbage-{n:06}"), &["garbage"], 2000);
            node["metadata"]["annotations"][full("kube-subnet-manager")] = json!("true");
            node["metadata"]["annotations"][full("public-ip")] = json!("garbage");
            bed.store.api().put_node(node);
        }
        Ok(())
    }

    fn add(bed: &Bed<Self>, leases: Range<u32>) -> Fallible<()> {
        for n in leases {
            let mut node = kubelet_node(&format!("p{n:05}"), &[&subnet(n)], 2000);
            let annotations = &mut node["metadata"]["annotations"];
            annotations[full("kube-subnet-manager")] = json!("true");
            annotations[full("backend-type")] = json!("vxlan");
            let data = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(n));
            annotations[full("backend-data")] = json!(data);
            annotations[full("public-ip")] = json!(underlay("vxlan", n));
            bed.store.api().put_node(node);
        }
        Ok(())
    }

    fn remove(bed: &Bed<Self>, n: u32) -> Fallible<()> {
        bed.store.api().delete_node(&format!("p{n:05}"));
        Ok(())
    }
}

impl Bulk for Folder {
    fn build(_: &Cluster) -> Fallible<Self> {
        Ok(Self::new("/run/garbage")?)
    }

    fn litter(bed: &Bed<Self>, count: u32) -> Fallible<()> {
        let folder = bed.store.path().join("subnets");
        Ok((0..count).try_for_each(|n| fs::write(folder.join(format!("garbage-{n:06}")), "garbage"))?)
    }

    fn add(bed: &Bed<Self>, mut leases: Range<u32>) -> Fallible<()> {
        Ok(leases.try_for_each(|n| bed.store.put(&key(n), &value("vxlan", n)))?)
    }

    fn remove(bed: &Bed<Self>, n: u32) -> Fallible<()> {
        Ok(bed.store.delete(&key(n))?)
    }
}

fn full(suffix: &str) -> String {
    format!("flannel.alpha.coreos.com/{suffix}")
}
