//! What probes cost an agent: without them, with peers that all answer, and with peers that are all silent.
//!
//! One node plays all peers: it has their addresses and answers for them through a real tunnel. Processor time is that of
//! all threads of the agent, memory what is resident at the end.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use flannel_benches::{Fallible, bed, in_lab, in_sandbox, leases, proc, wait_ready};
use flannel_lab::bed::Bed;
use flannel_lab::cluster::Cluster;
use flannel_lab::flanneld::{self, Stores};
use flannel_lab::store::{Folder, Store as _};

/// The VTEP MAC of the node that plays all peers.
const MAC: &str = "0a:00:00:00:00:02";

/// What probes cost an agent.
#[derive(Parser)]
struct Options {
    /// How many peers, in one run each.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    peers: Vec<u32>,
    /// How long each is measured, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How long to wait before, in seconds: until each peer got its first packet.
    #[arg(long, default_value_t = 60)]
    settle: u64,
    /// How often, in turn.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Agents to compare, in turn, in place of the one that is built beside this program.
    #[arg(long, value_delimiter = ',')]
    flanneld: Vec<PathBuf>,
    /// Measure silent peers alone.
    #[arg(long)]
    silent: bool,
}

fn main() -> Fallible<ExitCode> {
    let options = Options::parse();
    if options.flanneld.is_empty() {
        return in_lab(Stores::Local, || compare(&[flanneld::path(None)?], &options));
    }
    let given = options.flanneld.iter().map(|path| flanneld::path(Some(path)));
    let agents = given.collect::<Result<Vec<PathBuf>, _>>()?;
    in_sandbox(|| compare(&agents, &options))
}

fn compare(agents: &[PathBuf], options: &Options) -> Fallible<ExitCode> {
    for peers in options.peers.iter().flat_map(|peers| (0..options.rounds).map(move |_| *peers)) {
        println!("\n{peers} peers");
        for (name, flag, silent) in [
            ("without probes", "--probe=off", false),
            ("all answer", "--probe=auto", false),
            ("all silent", "--probe=auto", true),
        ] {
            for flanneld in agents.iter().filter(|_| silent || !options.silent) {
                let figures = run(flanneld, peers, flag, silent, options)?;
                let of = if agents.len() > 1 { flanneld.to_string_lossy() } else { "".into() };
                println!("  {name:<16}{figures}  {of}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn run(flanneld: &Path, peers: u32, flag: &str, silent: bool, options: &Options) -> Fallible<String> {
    let cluster = Cluster::builder().nodes(2).build()?;
    let store = Folder::new("/run/probes")?;
    store.put_config(&leases::config("vxlan"))?;
    let crowd = cluster.node(2).address();
    let value = format!(
        r#"{{"PublicIP":"{crowd}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{MAC}"}}}}"#
    );
    (0..peers).try_for_each(|n| store.put(&leases::key(n), &value))?;
    let bed = bed(cluster, store, flanneld, &[flag.to_owned()]);
    bed.start(1)?;
    wait_ready(bed.netns(1))?;
    if !silent {
        play_all_peers(&bed)?;
    }
    sleep(Duration::from_secs(options.settle));
    let agent = bed.agent(1);
    let (before, start) = (proc::activity(agent.pid())?, Instant::now());
    sleep(Duration::from_secs(options.seconds));
    let used = proc::activity(agent.pid())?.since(&before);
    let elapsed = start.elapsed().as_secs_f64();
    let percent = used.cpu.as_secs_f64() * 100.0 / elapsed;
    let resident = agent.rss()? as f64 / f64::from(1 << 20);
    let troubles = agent.log().matches("peer is not reached").count();
    Ok(format!(
        "{percent:6.2} % of a core  {resident:6.1} MiB resident  {troubles} peers called unreached by name"
    ))
}

/// Makes node 2 answer for all peers.
fn play_all_peers(bed: &Bed<Folder>) -> Fallible<()> {
    let (agent, crowd) = (bed.netns(1), bed.netns(2));
    let (here, there) = (bed.node(1).address(), bed.node(2).address());
    let shown = agent.ip_json("address show dev flannel.1")?;
    let mac = shown[0]["address"].as_str().ok_or("no MAC of flannel.1")?.to_owned();
    let infos = shown[0]["addr_info"].as_array().ok_or("no addresses of flannel.1")?;
    let own = infos.iter().find_map(|info| info["local"].as_str().filter(|addr| addr.starts_with("10.")));
    let own = own.ok_or("no address of flannel.1")?;
    // One host answers for all of them, so the limit of errors for each host must not be for all.
    crowd.sysctl("net.ipv4.icmp_ratelimit", "0")?;
    crowd.ip_batch(&[
        format!(
            "link add flannel.1 address {MAC} mtu 1450 type vxlan id 1 dstport 8472 local {there} dev eth0 nolearning"
        ),
        "link set flannel.1 up".to_owned(),
        "route add local 10.0.0.0/8 dev lo table main".to_owned(),
        format!("route add {own}/32 dev flannel.1"),
        format!("neighbour add {own} lladdr {mac} dev flannel.1 nud permanent"),
    ])?;
    crowd.bridge(&format!("fdb add {mac} dev flannel.1 dst {here} self permanent"))?;
    Ok(())
}
