//! The health port under attack by a pod: it stays a small part of the agent, which goes on with its work.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::in_sandbox_within;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::backends::VXLAN;
use crate::harness::{Bed, Folder, SOON, Store, env_of, http_get, new_folder};

/// Descriptors of an agent that serves as many connections as it may, and then some.
const DESCRIPTORS: usize = 150;

/// What 950 requests of 380 KB may leave in memory.
const MEMORY: u64 = 16 << 20;

fn descriptors(bed: &Bed<Folder>) -> usize {
    fs::read_dir(format!("/proc/{}/fd", bed.agent(1).pid())).unwrap().count()
}

/// Whether the liveness probe and the readiness probe are answered.
fn assert_probed(bed: &Bed<Folder>) {
    let healthz = http_get(bed.netns(1), 8471, "/healthz");
    assert!(healthz.ends_with("flanneld is running"), "{healthz}");
    let readyz = http_get(bed.netns(1), 8471, "/readyz");
    assert!(readyz.starts_with("HTTP/1.1 200"), "{readyz}");
}

/// A request over TCP from a pod; the whole answer.
fn ask(pod: &Pod, server: SocketAddr, request: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    pod.netns().enter(ask).unwrap().unwrap_or_else(|error| error.to_string())
}

#[test]
fn a_pod_that_floods_it_starves_nothing_and_learns_nothing() {
    in_sandbox_within(Duration::from_mins(3), test_name!(), || {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        let cluster = Cluster::builder().nodes(2).families(Families::V4).build().unwrap();
        let config = VXLAN.config(Families::V4).replacen('{', "{\"EnableNFTables\":true,", 1);
        let mut bed = Bed::with_config(cluster, new_folder(), &VXLAN, &config);
        // The limits of an interactive shell, and of the agent.
        bed.launcher = ["prlimit", "--nofile=1024:4096", &bed.launcher[0]].map(str::to_owned).to_vec();
        for number in [1, 2] {
            bed.spawn(number, &["--ip-masq"]);
        }
        for number in [1, 2] {
            bed.wait_ready(number);
        }
        let limits = fs::read_to_string(format!("/proc/{}/limits", bed.agent(1).pid())).unwrap();
        let limit = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(limit.split_whitespace().nth(3), Some("4096"), "{limits}");

        let pod = Pod::attach_plain(bed.cluster.node(1), &env_of(1)).unwrap();
        let server = SocketAddr::new(bed.cluster.node(1).ipv4().unwrap(), 8471);
        // The notes of the agent are for its own host.
        bed.store.put("10.244.177.0-24", "{\"PublicIP\": \"secret\"}").unwrap();
        eventually(SOON, "the bad record to be named", || {
            http_get(bed.netns(1), 8471, "/readyz").contains("10.244.177.0")
        });
        let request = "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";
        let answer = ask(&pod, server, request);
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nflanneld is ready"),
            "{answer}"
        );

        // Requests without an end. Each closed one makes room for the next, so all connect.
        let half_open: Vec<TcpStream> = pod
            .netns()
            .enter(|| {
                let begin = |_| {
                    let mut stream = TcpStream::connect(server).unwrap();
                    // The server may have closed it.
                    let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\n");
                    stream
                };
                (0..2000).map(begin).collect()
            })
            .unwrap();
        assert_probed(&bed);
        let open = descriptors(&bed);
        assert!(open < DESCRIPTORS, "{open} descriptors");
        bed.netns(1).run("nft", &["delete", "table", "ip", "flannel-ipv4"]).unwrap();
        eventually(SOON, "the rules to be back", || {
            bed.netns(1).run("nft", &["list", "table", "ip", "flannel-ipv4"]).is_ok()
        });
        let log = bed.agent(1).log();
        assert!(!log.contains("Too many open files"), "{log}");
        drop(half_open);

        // Headers without an end.
        let before = bed.agent(1).rss().unwrap();
        let header = format!("GET /healthz HTTP/1.1\r\nX: {}", "x".repeat(380_000));
        let large: Vec<TcpStream> = pod
            .netns()
            .enter(|| {
                let begin = |_| {
                    let mut stream = TcpStream::connect(server).unwrap();
                    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
                    let _ = stream.write_all(header.as_bytes());
                    stream
                };
                (0..950).map(begin).collect()
            })
            .unwrap();
        assert_probed(&bed);
        let grown = bed.agent(1).rss().unwrap().saturating_sub(before);
        assert!(grown < MEMORY, "{grown} bytes");
        drop(large);
        assert!(descriptors(&bed) < DESCRIPTORS);
        assert!(ask(&pod, server, request).ends_with("\r\n\r\nflanneld is ready"));
    });
}
