//! The agent as the first process of a pid namespace, as in its image.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use flannel_lab::bed;
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::sandbox::in_sandbox_within;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Manager;
use crate::backends::VXLAN;
use crate::harness::{FLANNELD, SOON, Store, http_get, new_folder, subnet_file};

/// Leaves a process behind at each call, which says that it ends.
const LEAVES_ORPHANS: &str = "#!/bin/sh
(sh -c 'echo >> /run/orphans' </dev/null >/dev/null 2>&1 &)
PATH=${PATH#*:} exec iptables-nft-save \"$@\"
";

/// What `/proc/<pid>/stat` says behind the name: state and parent of every process.
fn processes() -> Vec<(i32, String, char, i32)> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let process = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let mut rest = rest.split(' ');
        Some((pid, name.to_owned(), rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
    };
    pids.filter_map(process).collect()
}

fn child_of(pid: i32) -> i32 {
    processes().into_iter().find(|(_, _, _, parent)| *parent == pid).unwrap().0
}

#[test]
fn the_first_process_reaps_orphans_and_ends_as_the_agent_does() {
    in_sandbox_within(Duration::from_mins(1), test_name!(), || {
        let cluster = Cluster::builder().nodes(1).families(Families::V4).build().unwrap();
        let store = new_folder();
        store.put_config(&Manager::IptablesNft.config(&VXLAN)).unwrap();
        let folder = Path::new("/run/fake-programs");
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("iptables-nft-save"), LEAVES_ORPHANS).unwrap();
        fs::set_permissions(folder.join("iptables-nft-save"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        let start = |iface: &str| {
            let program = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", FLANNELD];
            let agent = bed::flanneld(cluster.node(1), &program, &store, &subnet_file(1));
            agent.env("PATH", &path).args([iface, "--ip-masq"]).start().unwrap()
        };
        let agent = start("--iface=eth0");
        eventually(SOON, "the agent to be ready", || {
            let said = http_get(cluster.node(1).netns(), 8471, "/readyz");
            if said.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(format!("{said}\n{}", agent.log())) }
        });
        eventually(SOON, "orphans", || {
            fs::read_to_string("/run/orphans").is_ok_and(|text| text.lines().count() > 3)
        });
        let zombies = || processes().into_iter().filter(|(_, _, state, _)| *state == 'Z').collect::<Vec<_>>();
        eventually(SOON, "no zombies", || {
            if zombies().is_empty() { Ok(()) } else { Err(format!("{:?}", zombies())) }
        });
        // The first process and the agent below it.
        let first = child_of(agent.pid().cast_signed());
        kill(Pid::from_raw(first), Signal::SIGHUP).unwrap();
        kill(Pid::from_raw(first), Signal::SIGTERM).unwrap();
        let status = agent.wait(SOON).unwrap();
        assert!(
            status.success() && agent.log().contains("stopped; the state of the kernel stays"),
            "{}",
            agent.log()
        );

        let agent = start("--iface=nowhere");
        assert_eq!(agent.wait(SOON).unwrap().code(), Some(1), "{}", agent.log());
        let agent = start("--iface=eth0");
        eventually(SOON, "the agent", || agent.log().contains("subnet file is in place"));
        let first = child_of(agent.pid().cast_signed());
        kill(Pid::from_raw(child_of(first)), Signal::SIGKILL).unwrap();
        assert_eq!(agent.wait(SOON).unwrap().code(), Some(128 + 9), "{}", agent.log());
    });
}
