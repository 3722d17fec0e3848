//! Named network namespaces.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::wait::wait_for;
use crate::{LabError, exec};

/// How long the kernel may take until a link that was set up carries frames. While it deletes a namespace with many objects, the work
/// waits for seconds.
const LINK_UP_DEADLINE: Duration = Duration::from_mins(1);

/// A network namespace with a name, as `ip netns` makes them. `lo` is up.
///
/// A handle: clones mean the same namespace. The name goes with the last one; the namespace
/// itself lives as long as a process or socket in it.
#[derive(Debug, Clone)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    deleted: AtomicBool,
}

impl Netns {
    /// Makes a namespace. Two of one name can't be.
    pub fn add(name: &str) -> Result<Self, LabError> {
        let mut ip = exec::command("ip")?;
        ip.args(["netns", "add", name]);
        exec::output(ip)?;
        let netns = Self(Arc::new(Inner { name: name.to_owned(), deleted: AtomicBool::new(false) }));
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The file that stands for it, for `setns` and `CNI_NETNS`.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(self.name())
    }

    /// Takes the name away now, without waiting for the last handle.
    pub fn delete(&self) -> Result<(), LabError> {
        self.0.delete()
    }

    /// A command that will run the program in here.
    ///
    /// `ip netns exec` replaces itself by the program, so the child's pid is the program's.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        // Whoever runs it learns soon enough if `ip` is missing.
        let mut command = Command::new(exec::find("ip").unwrap_or_else(|_| "ip".into()));
        command.args(["netns", "exec", self.name()]);
        command.arg(exec::find(program).unwrap_or_else(|_| program.to_owned()));
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program in here to its end and returns its stdout.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String, LabError> {
        exec::find(program)?;
        let mut command = self.command(program);
        command.args(args);
        exec::output(command)
    }

    /// Runs `ip` in here with arguments split on white space; returns its stdout.
    pub fn ip(&self, args: &str) -> Result<String, LabError> {
        self.tool("ip", &[], args)
    }

    /// Runs `ip -j -d` in here: what a `show` command tells, as JSON.
    pub fn ip_json(&self, args: &str) -> Result<Value, LabError> {
        let text = self.tool("ip", &["-j", "-d"], args)?;
        // Some commands print nothing at all for "none".
        let text = if text.trim().is_empty() { "[]" } else { &text };
        serde_json::from_str(text).map_err(|_| LabError::unexpected(format!("ip -j {args}"), text))
    }

    /// Runs a list of `ip` commands, one a line, in one go; stops at the first that fails.
    pub fn ip_batch(&self, lines: &[String]) -> Result<(), LabError> {
        let mut command = exec::command("ip")?;
        command.args(["-n", self.name(), "-batch", "-"]);
        exec::output_with_input(command, &(lines.join("\n") + "\n")).map(drop)
    }

    /// Runs `bridge` in here with arguments split on white space; returns its stdout.
    pub fn bridge(&self, args: &str) -> Result<String, LabError> {
        self.tool("bridge", &[], args)
    }

    fn tool(&self, program: &str, flags: &[&str], args: &str) -> Result<String, LabError> {
        let mut command = exec::command(program)?;
        command.args(["-n", self.name()]).args(flags).args(args.split_whitespace());
        exec::output(command)
    }

    /// Sets a kernel parameter: `net.ipv4.ip_forward`, or with slashes where a part of the name
    /// has a dot in it: `net/ipv4/conf/flannel.1/forwarding`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        let path = sysctl_path(key);
        let what = format!("writing {value} to {} in {}", path.display(), self.name());
        self.enter(|| fs::write(path, value))?.map_err(LabError::io(what))
    }

    /// Reads a kernel parameter; the key is as in [`sysctl`](Self::sysctl).
    pub fn read_sysctl(&self, key: &str) -> Result<String, LabError> {
        let path = sysctl_path(key);
        let what = format!("reading {} in {}", path.display(), self.name());
        let text = self.enter(|| fs::read_to_string(path))?.map_err(LabError::io(what))?;
        Ok(text.trim().to_owned())
    }

    /// The index of a link, `None` if there is no such link. Tells a link from its successor.
    pub fn link_index(&self, link: &str) -> Result<Option<u32>, LabError> {
        let found = self.enter(|| nix::net::if_::if_nametoindex(link))?;
        match found {
            Ok(index) => Ok(Some(index)),
            Err(nix::Error::ENODEV | nix::Error::ENXIO) => Ok(None),
            Err(error) => Err(LabError::Io {
                what: format!("the index of {link} in {}", self.name()),
                source: error.into(),
            }),
        }
    }

    /// Waits until a bridge in here carries the frames of a port whose both ends are up.
    ///
    /// The kernel opens a port, and the bridge itself with its first port, on a work queue of its own after the carrier came, which
    /// may take longer than the next command. What is sent before then is lost, and the next try of an ARP or a SYN is a second away.
    pub(crate) fn wait_for_port(&self, bridge: &str, port: &str) -> Result<(), LabError> {
        wait_for(LINK_UP_DEADLINE, &format!("{bridge} to carry frames of {port}"), || {
            let links = self.ip_json("link show").map_err(|error| error.to_string())?;
            let link = |name: &str| {
                let mut links = links.as_array().into_iter().flatten();
                links.find(|link| link["ifname"] == name).cloned().unwrap_or_default()
            };
            let [bridge, port] = [bridge, port].map(link);
            let port_state = &port["linkinfo"]["info_slave_data"]["state"];
            if port_state == "forwarding" && bridge["operstate"] == "UP" {
                return Ok(());
            }
            Err(format!("port {port_state}, bridge {}", bridge["operstate"]))
        })
    }

    /// Runs the closure on a thread of its own that has moved into this namespace.
    ///
    /// Sockets it opens stay in here, wherever they're used later. Processes it starts run here
    /// too. `/sys` still shows the namespace outside, `/proc/sys/net` and `/proc/thread-self/net`
    /// the one in here. A panic in it goes on in the caller.
    pub fn enter<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let what = || LabError::io(format!("entering namespace {}", self.name()));
        let file = File::open(self.path()).map_err(what())?;
        let entered = thread::scope(|scope| {
            let thread = scope.spawn(move || match setns(file, CloneFlags::CLONE_NEWNET) {
                Ok(()) => ControlFlow::Continue(closure()),
                Err(error) => ControlFlow::Break(error),
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        });
        match entered {
            ControlFlow::Continue(value) => Ok(value),
            ControlFlow::Break(error) => Err(what()(std::io::Error::from(error))),
        }
    }
}

impl Inner {
    fn delete(&self) -> Result<(), LabError> {
        if self.deleted.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let mut ip = exec::command("ip")?;
        ip.args(["netns", "del", &self.name]);
        exec::output(ip).map(drop)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The sandbox's end takes what this couldn't.
        let _ = self.delete();
    }
}

fn sysctl_path(key: &str) -> PathBuf {
    let path = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    Path::new("/proc/sys").join(path)
}
