//! Files below `/proc` that show the namespace of the thread that opens them.

use std::fs;
use std::io;

use super::Netns;

impl Netns {
    /// Reads a table of the kernel, such as `udp` of `/proc/net`, as it is in this namespace.
    pub fn proc_net(&self, table: &str) -> io::Result<String> {
        // `/proc/net` leads to the main thread's.
        self.run(|| fs::read_to_string(format!("/proc/thread-self/net/{table}")))?
    }

    /// Reads a sysctl of this namespace, without the newline. `name` is its path below `/proc/sys/net`, such as
    /// `ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str) -> io::Result<String> {
        let value = self.run(|| fs::read_to_string(sysctl_path(name)))??;
        Ok(value.trim_end().to_owned())
    }

    /// Sets a sysctl of this namespace. Fails where `/proc/sys` is mounted read-only, as it is in a container without
    /// rights.
    pub fn set_sysctl(&self, name: &str, value: &str) -> io::Result<()> {
        self.run(|| fs::write(sysctl_path(name), value))?
    }
}

fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/net/{name}")
}
