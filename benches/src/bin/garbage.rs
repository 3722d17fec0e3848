//! A store that somebody fills with garbage, beside one without any, in every round: how long a good lease takes to the
//! kernel then, and what the agent costs.
//!
//! The agent runs while the garbage is written. The first good lease is written right behind it, so it counts how far
//! the agent is behind; further ones come and go when it has settled. Then the agent is killed and finds the garbage at
//! its start.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use etcd_client::{Client, Txn, TxnOp};
use flannel_benches::announce::Listener;
use flannel_benches::leases::{base, config, key, mac, underlay, value};
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, HEALTH_PORT, in_lab, proc, wait_ready};
use flannel_core::dataplane::{Object, ObjectKey};
use flannel_core::kernel::KernelEvent;
use flannel_lab::agent::Agent;
use flannel_lab::cluster::Cluster;
use flannel_lab::etcd::{Etcd, EtcdOptions};
use flannel_lab::flanneld::{self, Stores};
use flannel_lab::kube::fake::{KubeApi, KubeApiOptions, kubelet_node};
use serde_json::json;

const PREFIX: &str = "/coreos.com/network";
const FOLDER: &str = "/run/garbage";
const NET_CONF: &str = "/run/garbage-net-conf.json";
const SUBNET_FILE: &str = "/run/garbage.env";
/// What etcd takes in one transaction unless told otherwise.
const TXN: usize = 128;
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
    /// Records that can't be read.
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

enum Store {
    Etcd(Box<Etcd>),
    Kube(Box<KubeApi>),
    Local,
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
                    run(&flanneld, *kind, garbage, &options, figures)?;
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

struct Bed {
    cluster: Cluster,
    store: Store,
    flanneld: PathBuf,
}

fn run(flanneld: &Path, kind: Kind, garbage: u32, options: &Options, figures: &mut Figures) -> Fallible<()> {
    let bed = Bed::build(flanneld, kind)?;
    bed.put(0, options.leases)?;
    let agent = bed.start()?;
    wait_ready(bed.cluster.node(1).netns())?;
    let listener = Listener::start(bed.cluster.node(1).netns())?;
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
    bed.litter(garbage)?;
    for n in options.leases..options.leases + options.singles {
        let start = Instant::now();
        bed.put(n, n + 1)?;
        let took = millis(start, wait(n, true)?);
        if n == options.leases { &mut figures.first } else { &mut figures.single }.push(took);
        if n == options.leases {
            // As after a while: what was written a moment ago is looked at twice.
            sleep(Duration::from_secs(3));
        }
        let start = Instant::now();
        bed.delete(n)?;
        figures.gone.push(millis(start, wait(n, false)?));
        sleep(Duration::from_millis(20));
    }
    figures.rss.push(mebibytes(agent.rss()?));
    figures.peak.push(mebibytes(proc::peak_memory(agent.pid())?));
    agent.kill()?;
    drop(agent);
    let agent = bed.start()?;
    figures.start.push(wait_ready(bed.cluster.node(1).netns())?);
    figures.start_peak.push(mebibytes(proc::peak_memory(agent.pid())?));
    Ok(())
}

fn millis(start: Instant, end: Instant) -> f64 {
    end.saturating_duration_since(start).as_secs_f64() * 1e3
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Bed {
    fn build(flanneld: &Path, kind: Kind) -> Fallible<Self> {
        let cluster = Cluster::builder().nodes(1).build()?;
        for left in [SUBNET_FILE.to_owned(), format!("{SUBNET_FILE}.state")] {
            let _ = fs::remove_file(left);
        }
        let store = match kind {
            Kind::Etcd => {
                let options = EtcdOptions::at(cluster.fabric(), cluster.fabric_address());
                Store::Etcd(Etcd::start(options)?.into())
            }
            Kind::Kube => {
                fs::write(NET_CONF, config("vxlan"))?;
                let api = KubeApi::start(KubeApiOptions::at(cluster.fabric(), cluster.fabric_address()))?;
                // The first subnet of the network, which is no lease's.
                api.put_node(kubelet_node("n0", &["10.64.0.0/24"], 2000));
                Store::Kube(api.into())
            }
            Kind::Local => {
                let _ = fs::remove_dir_all(FOLDER);
                fs::create_dir_all(Path::new(FOLDER).join("subnets"))?;
                fs::write(Path::new(FOLDER).join("config"), config("vxlan"))?;
                Store::Local
            }
        };
        let bed = Self { cluster, store, flanneld: flanneld.to_owned() };
        bed.etcd(&[TxnOp::put(format!("{PREFIX}/config"), config("vxlan"), None)])?;
        Ok(bed)
    }

    fn start(&self) -> Fallible<Agent> {
        let agent = self.cluster.node(1).agent("flanneld", &self.flanneld).env("NODE_NAME", "n0");
        let agent = match &self.store {
            Store::Etcd(etcd) => agent.arg(format!("--etcd-endpoints={}", etcd.endpoint())),
            Store::Kube(api) => agent.args([
                "--kube-subnet-mgr".to_owned(),
                format!("--kube-api-url={}", api.url()),
                format!("--net-config-path={NET_CONF}"),
            ]),
            Store::Local => agent.arg(format!("--store=local:{FOLDER}")),
        };
        let agent = agent.args(["--iface=eth0".to_owned(), format!("--subnet-file={SUBNET_FILE}")]);
        Ok(agent.arg(format!("--healthz-port={HEALTH_PORT}")).start()?)
    }

    /// Writes garbage.
    fn litter(&self, count: u32) -> Fallible<()> {
        match &self.store {
            Store::Etcd(_) => {
                let name = |n| format!("{PREFIX}/subnets/garbage-{n:06}");
                let ops: Vec<TxnOp> = (0..count).map(|n| TxnOp::put(name(n), "garbage", None)).collect();
                self.etcd(&ops)
            }
            Store::Kube(api) => {
                for n in 0..count {
                    let mut node = kubelet_node(&format!("garbage-{n:06}"), &["garbage"], 2000);
                    node["metadata"]["annotations"][full("kube-subnet-manager")] = json!("true");
                    node["metadata"]["annotations"][full("public-ip")] = json!("garbage");
                    api.put_node(node);
                }
                Ok(())
            }
            Store::Local => {
                for n in 0..count {
                    fs::write(Path::new(FOLDER).join("subnets").join(format!("garbage-{n:06}")), "garbage")?;
                }
                Ok(())
            }
        }
    }

    /// Writes good leases.
    fn put(&self, from: u32, to: u32) -> Fallible<()> {
        match &self.store {
            Store::Etcd(_) => {
                let name = |n| format!("{PREFIX}/subnets/{}", key(n));
                let put = |n| TxnOp::put(name(n), value("vxlan", n), None);
                self.etcd(&(from..to).map(put).collect::<Vec<TxnOp>>())
            }
            Store::Kube(api) => {
                for n in from..to {
                    let mut node = kubelet_node(&format!("p{n:05}"), &[&format!("{}/24", base(n))], 2000);
                    let annotations = &mut node["metadata"]["annotations"];
                    annotations[full("kube-subnet-manager")] = json!("true");
                    annotations[full("backend-type")] = json!("vxlan");
                    let data = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(n));
                    annotations[full("backend-data")] = json!(data);
                    annotations[full("public-ip")] = json!(underlay("vxlan", n));
                    api.put_node(node);
                }
                Ok(())
            }
            Store::Local => {
                for n in from..to {
                    let (folder, draft) =
                        (Path::new(FOLDER).join("subnets"), Path::new(FOLDER).join("draft"));
                    fs::write(&draft, value("vxlan", n))?;
                    fs::rename(draft, folder.join(key(n)))?;
                }
                Ok(())
            }
        }
    }

    fn delete(&self, n: u32) -> Fallible<()> {
        match &self.store {
            Store::Etcd(_) => self.etcd(&[TxnOp::delete(format!("{PREFIX}/subnets/{}", key(n)), None)]),
            Store::Kube(api) => {
                api.delete_node(&format!("p{n:05}"));
                Ok(())
            }
            Store::Local => Ok(fs::remove_file(Path::new(FOLDER).join("subnets").join(key(n)))?),
        }
    }

    /// Does these in etcd, if that is the store, in as few transactions as possible.
    fn etcd(&self, ops: &[TxnOp]) -> Fallible<()> {
        let Store::Etcd(etcd) = &self.store else { return Ok(()) };
        let endpoint = etcd.endpoint();
        let talk = || -> Result<(), String> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            let talk = async {
                let mut client = Client::connect([endpoint], None).await?;
                for part in ops.chunks(TXN) {
                    client.txn(Txn::new().and_then(part)).await?;
                }
                Ok(())
            };
            runtime.block_on(talk).map_err(|error: etcd_client::Error| error.to_string())
        };
        Ok(self.cluster.fabric().enter(talk)??)
    }
}

fn full(suffix: &str) -> String {
    format!("flannel.alpha.coreos.com/{suffix}")
}
