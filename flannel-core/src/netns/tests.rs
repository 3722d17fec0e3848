//! Namespaces of the real kernel, in a sandbox.

use std::fs;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use nix::sched::{CloneFlags, unshare};

use super::*;

const SOON: Duration = Duration::from_secs(20);

/// A new namespace, made by a thread that ends.
fn fresh() -> Netns {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Netns::current().unwrap()
    });
    made.join().unwrap()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn work_is_done_there_and_the_thread_stays_here() {
    in_sandbox(test_name!(), || {
        let (here, there) = (Netns::current().unwrap(), fresh());
        assert!(here.is_current() && !there.is_current());
        assert!(there.run(|| there.is_current() && !here.is_current()).unwrap());
        assert!(here.is_current());
        let caller = thread::current().id();
        assert_eq!(here.run(|| thread::current().id()).unwrap(), caller);
        assert_ne!(there.run(|| thread::current().id()).unwrap(), caller);
        // By another path it is the same one.
        let path = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
        assert_eq!(Netns::open(path).unwrap(), here);
        assert_ne!(there, here);
    });
}

#[test]
fn sysctls_tables_and_sockets_are_those_of_the_namespace() {
    in_sandbox(test_name!(), || {
        let (here, there) = (Netns::current().unwrap(), fresh());
        let name = "ipv6/conf/lo/accept_ra";
        let before = here.sysctl(name).unwrap();
        there.set_sysctl(name, "2").unwrap();
        assert_eq!((there.sysctl(name).unwrap(), here.sysctl(name).unwrap()), ("2".to_owned(), before));
        let socket = there.run(|| UdpSocket::bind("0.0.0.0:8472").unwrap()).unwrap();
        let has_port = |netns: &Netns| netns.proc_net("udp").unwrap().contains(":2118 ");
        assert!(has_port(&there) && !has_port(&here));
        drop(socket);
        assert!(!has_port(&there));
        assert_eq!(here.sysctl("ipv4/no_such").unwrap_err().kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn processes_of_the_runtime_are_spawned_there() {
    in_sandbox(test_name!(), || {
        let there = fresh();
        let shown = |of: &str| fs::read_link(of).unwrap().display().to_string();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let output = runtime.block_on(async {
            let mut command = tokio::process::Command::new("readlink");
            command.arg("/proc/self/ns/net").stdout(std::process::Stdio::piped());
            there.run(|| command.spawn()).unwrap().unwrap().wait_with_output().await.unwrap()
        });
        let told = String::from_utf8(output.stdout).unwrap();
        assert_eq!(told.trim_end(), there.run(|| shown(OF_THIS_THREAD)).unwrap());
        assert_ne!(told.trim_end(), shown(OF_THIS_THREAD));
    });
}

#[test]
fn nothing_is_left_of_the_work() {
    in_sandbox(test_name!(), || {
        let threads_before = threads();
        let there = fresh();
        let before = (descriptors(), threads_before);
        for _ in 0..20 {
            there.run(|| ()).unwrap();
            drop(fresh());
        }
        // The kernel lists a thread a little longer than others wait for it.
        let is_as_before = || Some((descriptors(), threads())).filter(|now| *now == before);
        eventually(SOON, "no descriptor and no thread is left", is_as_before);
        let panic = std::panic::catch_unwind(|| there.run(|| panic!("told")));
        assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"told"));
        eventually(SOON, "nothing is left of a panic", is_as_before);
    });
}

#[test]
fn what_is_no_network_namespace_is_told_when_it_is_opened() {
    in_sandbox(test_name!(), || {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let fifo = fifo.to_str().unwrap();
        for path in ["/proc/self/ns/uts", "/proc/self/status", "/dev/null", fifo] {
            assert!(matches!(Netns::open(path), Err(NetnsError::NotOne { name }) if name == path), "{path}");
        }
        let error = Netns::open("/run/netns/no-such").unwrap_err();
        assert_eq!(error.to_string(), "can't open network namespace /run/netns/no-such");
        assert!(matches!(error, NetnsError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound));
    });
}
