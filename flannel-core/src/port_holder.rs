//! Finds out who has a UDP port, for the error that the port is taken. Reads `/proc`.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::netns::Netns;

/// The inode of the first pid namespace, whose `/proc` has all processes (`PROC_PID_INIT_INO` of `linux/proc_ns.h`).
const FIRST_PIDS: &str = "pid:[4026531836]";

/// Who has a UDP port.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PortHolder {
    /// A process.
    Process {
        /// Its name.
        name: String,
        /// Its pid, as this process sees it.
        pid: u32,
    },
    /// The kernel itself, for a tunnel device.
    Kernel,
    /// The kernel, or a process of which this process may not see the descriptors or that is in another pid namespace: the
    /// table of sockets does not tell the two apart.
    Unseen,
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { name, pid } => write!(f, "process {name} (pid {pid})"),
            Self::Kernel => f.write_str("a tunnel device of the kernel (see ip -d link)"),
            Self::Unseen => f.write_str(
                "a tunnel device of the kernel (see ip -d link) or a process that can't be seen from here (see ss -ulnp on \
                 the host)",
            ),
        }
    }
}

/// Who has a UDP port in a network namespace, as far as this process may see it; `None` if nobody has it.
pub fn udp_port_holder(netns: &Netns, port: u16) -> Option<PortHolder> {
    let tables = ["udp", "udp6"].map(|table| netns.proc_net(table));
    let inode = tables.into_iter().flatten().find_map(|table| inode_of(&table, port))?;
    if inode == 0 {
        return Some(PortHolder::Kernel);
    }
    let sees_all = fs::read_link("/proc/self/ns/pid").is_ok_and(|pids| pids.as_os_str() == FIRST_PIDS);
    Some(process_with(inode, Path::new("/proc"), sees_all))
}

/// The inode of the socket with a port, from the kernel's table (`/proc/net/udp`). Kernels differ in whether a socket of
/// the kernel itself has one: 0 is always such a socket.
fn inode_of(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (_, theirs) = fields.nth(1)?.rsplit_once(':')?;
        let inode = fields.nth(7)?.parse().ok()?;
        (u16::from_str_radix(theirs, 16).ok()? == port).then_some(inode)
    })
}

/// The process that has a socket among its descriptors. `sees_all` says whether all processes of the host are in this `/proc`.
fn process_with(inode: u64, proc: &Path, mut sees_all: bool) -> PortHolder {
    let socket = format!("socket:[{inode}]");
    let Ok(processes) = fs::read_dir(proc) else { return PortHolder::Unseen };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let files = match fs::read_dir(process.path().join("fd")) {
            Ok(files) => files,
            Err(error) => {
                // One that is gone by now has nothing.
                sees_all &= error.kind() == std::io::ErrorKind::NotFound;
                continue;
            }
        };
        let is_it = |path: &Path| fs::read_link(path).is_ok_and(|to| to.as_os_str() == socket.as_str());
        if files.flatten().any(|file| is_it(&file.path())) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return PortHolder::Process { name: name.trim_end().to_owned(), pid };
        }
    }
    if sees_all { PortHolder::Kernel } else { PortHolder::Unseen }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_table_of_the_kernel_is_read() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref\n \
                     77: 0100007F:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2\n \
                     78: 00000000000000000000000000000000:205D 00000000:0000 07 0:0 00:0 0     0        0 0 2\nbroken";
        for (port, inode) in [(8472, Some(4711)), (8285, Some(0)), (53, None)] {
            assert_eq!(inode_of(table, port), inode, "{port}");
        }
    }

    #[test]
    fn a_process_is_named() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let holder = udp_port_holder(&Netns::current().unwrap(), socket.local_addr().unwrap().port());
        assert!(
            matches!(holder, Some(PortHolder::Process { pid, .. }) if pid == std::process::id()),
            "{holder:?}"
        );
    }

    /// Since Linux 6.18 the sockets of tunnel devices have inodes, too, so what no process has is the kernel's: if all
    /// processes can be seen.
    #[test]
    fn a_socket_that_no_process_has_is_the_kernels() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: &str| {
            let fd = proc.path().join(pid).join("fd");
            fs::create_dir_all(&fd).unwrap();
            fs::write(proc.path().join(pid).join("comm"), "dnsmasq\n").unwrap();
            fd
        };
        std::os::unix::fs::symlink("socket:[4711]", process("77").join("3")).unwrap();
        process("self");
        let found = |inode, sees_all| process_with(inode, proc.path(), sees_all);
        let dnsmasq = PortHolder::Process { name: "dnsmasq".to_owned(), pid: 77 };
        assert_eq!((found(4711, true), found(4711, false)), (dnsmasq.clone(), dnsmasq));
        assert_eq!((found(4712, true), found(4712, false)), (PortHolder::Kernel, PortHolder::Unseen));
        // A process that hides its descriptors: here its folder is a file.
        fs::create_dir(proc.path().join("78")).unwrap();
        fs::write(proc.path().join("78/fd"), "").unwrap();
        assert_eq!(found(4712, true), PortHolder::Unseen);
        assert_eq!(found(4711, true).to_string(), "process dnsmasq (pid 77)");
    }
}
