//! The cluster's names: a server in a pod that answers for them, and clients that ask as any program in a pod does.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use flannel_lab::netns::Netns;
use flannel_lab::pod::Pod;

/// Where names are served.
const PORT: u16 = 53;
/// The types of RFC 1035 and RFC 3596.
const A: u16 = 1;
const AAAA: u16 = 28;

/// Names with their addresses, in a pod, for as long as the test runs.
pub(super) fn serve(pod: &Pod, names: &[(String, Vec<IpAddr>)]) {
    let open =
        || (UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)), TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)));
    let (udp, tcp) = pod.netns().enter(open).unwrap();
    let (udp, tcp) = (udp.unwrap(), tcp.unwrap());
    let (by_udp, by_tcp) = (names.to_vec(), names.to_vec());
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = udp.recv_from(&mut query) {
            let answer = answer(&query[..length], &by_udp).unwrap();
            _ = udp.send_to(&answer, client);
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let names = by_tcp.clone();
            // A resolver sends both its questions over one connection.
            thread::spawn(move || {
                let mut stream = stream.unwrap();
                while let Ok(()) = by_one_question(&mut stream, &names) {}
            });
        }
    });
}

/// Over TCP a message has its length before it.
fn by_one_question(stream: &mut TcpStream, names: &[(String, Vec<IpAddr>)]) -> std::io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut query)?;
    let answer = answer(&query, names).unwrap();
    let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], &answer].concat())
}

/// The answer to a query with one question; `None` if it is none.
fn answer(query: &[u8], names: &[(String, Vec<IpAddr>)]) -> Option<Vec<u8>> {
    let (header, mut rest) = query.split_at_checked(12)?;
    let mut name = String::new();
    while let (length @ 1.., more) = (usize::from(*rest.first()?), &rest[1..]) {
        let (label, more) = more.split_at_checked(length)?;
        name = format!("{name}{}.", String::from_utf8_lossy(label).to_lowercase());
        rest = more;
    }
    let kind = u16::from_be_bytes([*rest.get(1)?, *rest.get(2)?]);
    let question = &query[12..query.len() - rest.len() + 5];
    let found = names.iter().find(|(known, _)| *known == name);
    let addresses =
        found.into_iter().flat_map(|(_, addresses)| addresses).filter_map(|address| match address {
            IpAddr::V4(ip) if kind == A => Some(ip.octets().to_vec()),
            IpAddr::V6(ip) if kind == AAAA => Some(ip.octets().to_vec()),
            _ => None,
        });
    let addresses = addresses.collect::<Vec<_>>();
    // A response, authoritative; a name that nobody has is code 3.
    let flags = [0x84 | header[2] & 1, if found.is_some() { 0 } else { 3 }];
    let counts = [0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0];
    let mut answer = [&header[..2], &flags, &counts, question].concat();
    for address in addresses {
        // The name of the question, its type and class, and thirty seconds.
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 30, 0]);
        answer.push(u8::try_from(address.len()).ok()?);
        answer.extend(address);
    }
    Some(answer)
}

/// How a client asks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    Udp,
    Tcp,
}

/// Runs a line of shell in a namespace whose `/etc/resolv.conf` is what a kubelet writes for pods; what it printed, or
/// what went wrong.
pub(super) fn run(netns: &Netns, server: IpAddr, ask: Ask, line: &str) -> Result<String, String> {
    let file = format!("/run/resolv-{}-{ask:?}", netns.name());
    let by = match ask {
        Ask::Udp => "",
        Ask::Tcp => " use-vc",
    };
    let search = "default.svc.cluster.local svc.cluster.local cluster.local";
    fs::write(&file, format!("nameserver {server}\nsearch {search}\noptions ndots:5 timeout:2{by}\n"))
        .unwrap();
    // `ip netns exec` has a mount namespace of its own.
    let line = format!("mount --bind {file} /etc/resolv.conf && {line}");
    netns.run("sh", &["-c", &line]).map_err(|error| error.to_string())
}

/// The addresses that a name has for a program, in one family.
pub(super) fn resolve(
    netns: &Netns,
    server: IpAddr,
    ask: Ask,
    name: &str,
    v6: bool,
) -> Result<Vec<IpAddr>, String> {
    let database = if v6 { "ahostsv6" } else { "ahostsv4" };
    let text = run(netns, server, ask, &format!("getent {database} {name}"))?;
    let mut addresses: Vec<IpAddr> =
        text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    addresses.dedup();
    Ok(addresses)
}

/// GETs a page; its status, the address that it came from, and what it says.
pub(super) fn get(
    netns: &Netns,
    server: IpAddr,
    ask: Ask,
    url: &str,
    v6: bool,
) -> Result<(u16, IpAddr, String), String> {
    let (family, limit) = (if v6 { "-6" } else { "-4" }, Duration::from_secs(5).as_secs());
    let shape = r"'\n%{http_code}\n%{remote_ip}'";
    let curl = format!("curl {family} -sS --noproxy '*' --max-time {limit} -w {shape} '{url}'");
    let text = run(netns, server, ask, &curl)?;
    let mut lines = text.lines().rev();
    let mut next = || lines.next().ok_or_else(|| text.clone());
    let address = next()?.parse().map_err(|_| text.clone())?;
    let status = next()?.parse().map_err(|_| text.clone())?;
    Ok((status, address, lines.rev().collect::<Vec<_>>().concat()))
}
