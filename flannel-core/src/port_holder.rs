//! Names the process that has a UDP port, for the error that the port is taken. Reads `/proc`.

use std::fs;
use std::path::Path;

use crate::netns::Netns;

/// Names the process that has a UDP port in a network namespace, as far as this process may see it; `None` if no
/// process has it.
pub fn udp_port_holder(netns: &Netns, port: u16) -> Option<String> {
    let tables = ["udp", "udp6"].map(|table| netns.proc_net(table));
    let inode = tables.into_iter().flatten().find_map(|table| inode_of(&table, port))?;
    if inode == 0 {
        return Some("a tunnel device of the kernel (see ip -d link)".to_owned());
    }
    let unseen = || "a process that can't be seen from here (see ss -ulnp on the host)".to_owned();
    Some(process_with(inode).unwrap_or_else(unseen))
}

/// The inode of the socket with a port, from the kernel's table (`/proc/net/udp`); 0 for a socket of the kernel itself.
fn inode_of(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (_, theirs) = fields.nth(1)?.rsplit_once(':')?;
        let inode = fields.nth(7)?.parse().ok()?;
        (u16::from_str_radix(theirs, 16).ok()? == port).then_some(inode)
    })
}

fn process_with(inode: u64) -> Option<String> {
    let socket = format!("socket:[{inode}]");
    let holds = |process: &Path| {
        let mut files = fs::read_dir(process.join("fd")).ok()?.flatten();
        files.find(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == socket.as_str()))
    };
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let mut processes = fs::read_dir("/proc").ok()?.flatten();
    processes.find_map(|process| {
        let pid = process.file_name().into_string().ok().filter(|name| is_process(name))?;
        holds(&process.path())?;
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(format!("process {} (pid {pid})", name.trim_end()))
    })
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
        let holder =
            udp_port_holder(&Netns::current().unwrap(), socket.local_addr().unwrap().port()).unwrap();
        assert!(holder.contains(&format!("(pid {})", std::process::id())), "{holder}");
    }
}
