//! The table: from what was answered to a verdict with evidence. Pure.

#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;

use super::kind::Kind;
use super::status::Verdict;

/// Whether a packet of a kind was answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Answer {
    /// It was not sent.
    #[default]
    Untried,
    /// It was answered.
    Yes,
    /// It was sent, and not answered in time.
    No,
}

impl Answer {
    fn is_yes(self) -> bool {
        self == Self::Yes
    }

    fn is_no(self) -> bool {
        self == Self::No
    }
}

/// What the tunnel itself knows of a peer, where it has sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// There was no handshake since it knows the peer.
    NoHandshake,
    /// The last handshake was so long ago.
    Handshake {
        /// How long ago, in whole seconds.
        seconds: u64,
        /// Whether its session still carries packets.
        is_alive: bool,
    },
}

/// What was answered of the packets of one round, and what was known before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// A small echo through the overlay.
    pub(super) small: Answer,
    /// An echo through the overlay that fills its MTU.
    pub(super) full: Answer,
    /// UDP through the overlay whose checksum the device completes.
    pub(super) offloaded: Answer,
    /// UDP through the overlay with a checksum by the kernel.
    pub(super) software: Answer,
    /// A TCP connection through the overlay.
    pub(super) tcp: Answer,
    /// A small echo on the underlay.
    pub(super) under_echo: Answer,
    /// UDP on the underlay.
    pub(super) under_udp: Answer,
    /// A TCP connection on the underlay.
    pub(super) under_tcp: Answer,
    /// A datagram to the tunnel's port that its owner ignores; an answer says that the port is closed.
    pub(super) closed: Answer,
    /// The question to its link who has the address of its node.
    pub(super) solicit: Answer,
    /// An echo that goes through the tunnel and is answered on the underlay.
    pub(super) sideways: Answer,
    /// The same to whatever MAC the peer's device has.
    pub(super) any_mac: Answer,
    /// The largest echo through the overlay that passes, once that was measured, in bytes with the IP header.
    pub(super) largest: Option<u32>,
    /// The bytes of the echo that fills the MTU.
    pub(super) mtu: u32,
    /// Whether somebody else says that the peer's node can't be reached on the underlay: a router, or this node's own
    /// kernel because nobody has the address on the link.
    pub(super) unreachable: Option<IpAddr>,
    /// The errno with which this node's kernel refused to send through the overlay.
    pub(super) refused: Option<i32>,
    /// Whether the peer ever answered on the underlay.
    pub(super) node_answered: bool,
    /// Whether the peer ever answered through the overlay.
    pub(super) overlay_answered: bool,
    /// The tunnel's UDP port; `None` for a peer that is reached without a tunnel.
    pub(super) port: Option<u16>,
    /// What the tunnel knows of it.
    pub(super) known: Option<Known>,
    /// For how many whole seconds the overlay has not answered.
    pub(super) silent_seconds: u64,
    /// The backend by which it is reached while its own tunnel is blocked.
    pub(super) detour: Option<String>,
    /// Whether the loop gives its routes the MTU that passes.
    pub(super) is_limited: bool,
}

impl Findings {
    /// Where the answer to packets of a kind is kept; `None` for those of the search for the largest.
    pub(super) fn of_kind(&mut self, kind: Kind) -> Option<&mut Answer> {
        Some(match kind {
            Kind::Small => &mut self.small,
            Kind::Full => &mut self.full,
            Kind::Offloaded => &mut self.offloaded,
            Kind::Software => &mut self.software,
            Kind::Tcp => &mut self.tcp,
            Kind::UnderEcho => &mut self.under_echo,
            Kind::UnderUdp => &mut self.under_udp,
            Kind::UnderTcp => &mut self.under_tcp,
            Kind::Closed => &mut self.closed,
            Kind::Sideways => &mut self.sideways,
            Kind::AnyMac => &mut self.any_mac,
            Kind::Solicit => &mut self.solicit,
            Kind::AtLargest(_) | Kind::Rung(_) => return None,
        })
    }

    /// The answer to packets of a kind.
    pub(super) fn answer(&self, kind: Kind) -> Option<Answer> {
        self.clone().of_kind(kind).copied()
    }

    /// Whether only the largest packet that passes is not known yet.
    pub(super) fn lacks_largest(&self) -> bool {
        self.small.is_yes() && self.full.is_no() && self.largest.is_none()
    }

    /// Whether everything that was sent through the overlay was answered, and something was.
    pub(super) fn is_good(&self) -> bool {
        let is_there = self.small.is_yes() || self.small == Answer::Untried && self.offloaded.is_yes();
        is_there && !self.full.is_no() && !self.offloaded.is_no()
    }

    /// The answer to the packet by which loss is counted: the small echo, where echoes can be sent.
    pub(super) fn usual(&self) -> Answer {
        if self.small == Answer::Untried { self.offloaded } else { self.small }
    }

    /// Whether there was a handshake since the overlay stopped to answer: so the tunnel's messages get there and back.
    fn has_news(&self) -> bool {
        matches!(self.known, Some(Known::Handshake { seconds, .. }) if seconds < self.silent_seconds)
    }

    /// What the tunnel knows, in words.
    fn tunnels_word(&self) -> Option<String> {
        Some(match self.known? {
            Known::NoHandshake => "there was no handshake with it since this node knows it".to_owned(),
            Known::Handshake { seconds, is_alive } => {
                let since = match (self.has_news(), is_alive) {
                    (true, _) => ", after it stopped to answer: so the tunnel's messages get there and back",
                    (false, true) => ", before it stopped to answer",
                    (false, false) => ", and none has succeeded since",
                };
                format!("the last handshake with it was {seconds} s ago{since}")
            }
        })
    }

    /// Whether nothing answers through the overlay.
    pub(super) fn is_unreached(&self) -> bool {
        self.overlay_answers().is_empty()
    }

    /// What of the peer answers through the overlay.
    fn overlay_answers(&self) -> Vec<&'static str> {
        let udp = if self.offloaded.is_yes() { self.offloaded } else { self.software };
        named([(self.small, "echo"), (udp, "UDP"), (self.tcp, "TCP")], Answer::Yes)
    }

    /// What of its node answers on the underlay.
    fn node_answers(&self) -> Vec<&'static str> {
        let ways = [(self.under_echo, "echo"), (self.under_udp, "UDP"), (self.under_tcp, "TCP")];
        named(ways, Answer::Yes)
    }

    /// What does not answer through the overlay.
    fn overlay_silence(&self) -> String {
        let udp = if self.offloaded.is_no() { self.offloaded } else { self.software };
        let silent = named([(self.small, "echo"), (udp, "UDP"), (self.tcp, "TCP")], Answer::No);
        format!("the overlay does not answer {}", silent.join(", "))
    }

    fn node_silence(&self) -> String {
        let ways = [(self.under_echo, "echo"), (self.under_udp, "UDP"), (self.under_tcp, "TCP")];
        format!("the node does not answer {} on the underlay", named(ways, Answer::No).join(", "))
    }
}

fn named<const N: usize>(ways: [(Answer, &'static str); N], answer: Answer) -> Vec<&'static str> {
    ways.into_iter().filter(|(way, _)| *way == answer).map(|(_, name)| name).collect()
}

/// The verdict about a peer and the evidence for it.
pub(super) fn judge(found: &Findings) -> (Verdict, Vec<String>) {
    let overlay = found.overlay_answers();
    if found.is_unreached() { unreached(found) } else { reached(found, &overlay) }
}

/// Something answers through the overlay.
fn reached(found: &Findings, overlay: &[&str]) -> (Verdict, Vec<String>) {
    if found.small.is_yes()
        && found.full.is_no()
        && let Some(at_most) = found.largest
    {
        let mut evidence = vec![
            format!("{at_most} bytes are answered through the overlay"),
            format!("{} are lost, and pods send up to {}", at_most + 1, found.mtu),
        ];
        if found.is_limited {
            evidence.push("its routes have that MTU meanwhile, so pods are told to send less".to_owned());
        }
        return (Verdict::MtuHole { at_most }, evidence);
    }
    if found.offloaded.is_no() && found.software.is_yes() {
        let evidence = vec![
            "UDP with a checksum by the kernel is answered through the overlay".to_owned(),
            "UDP whose checksum the device should complete is lost".to_owned(),
        ];
        return (Verdict::ChecksumOffload, evidence);
    }
    if found.small.is_no() {
        let evidence =
            vec![format!("{} is answered through the overlay", overlay.join(", ")), "echo is not".to_owned()];
        return (Verdict::IcmpFiltered, evidence);
    }
    match &found.detour {
        Some(by) => (Verdict::Bridged, bridged(found, by)),
        None => (Verdict::Reachable, Vec::new()),
    }
}

/// What is known of the tunnel of a peer that is reached by another backend.
fn bridged(found: &Findings, by: &str) -> Vec<String> {
    let port = found.port.map(|port| format!(" to UDP port {port}")).unwrap_or_default();
    let tunnel = match found.sideways {
        Answer::Yes => {
            "an echo through its tunnel is answered again: packets go back to it once that has lasted"
                .to_owned()
        }
        Answer::No => format!("no echo through its tunnel{port} is answered"),
        Answer::Untried => "this host can't send by hand through its tunnel to try it".to_owned(),
    };
    vec![tunnel, format!("packets travel by {by} meanwhile")]
}

/// Nothing answers through the overlay.
fn unreached(found: &Findings) -> (Verdict, Vec<String>) {
    if let Some(errno) = found.refused {
        let why = format!("the kernel refuses to send: {}", io::Error::from_raw_os_error(errno));
        return (Verdict::Unsent, vec![why]);
    }
    if !found.usual().is_no() {
        return (Verdict::Untested, Vec::new());
    }
    let mut evidence = vec![found.overlay_silence()];
    let node = found.node_answers();
    if !node.is_empty() {
        evidence.push(format!("the node answers {} on the underlay", node.join(", ")));
    }
    evidence.extend(found.tunnels_word());
    let port = found.port.map(|port| format!("UDP port {port}")).unwrap_or_default();
    if found.closed.is_yes() {
        evidence.push(format!("its kernel says that {port} is closed"));
        return (Verdict::TunnelClosed, evidence);
    }
    if found.sideways.is_yes() {
        evidence
            .push("an echo through the tunnel is answered when the answer may take the underlay".to_owned());
        return (Verdict::ReturnPath, evidence);
    }
    if found.any_mac.is_yes() {
        evidence.push(
            "an echo through the tunnel is answered when it is for any MAC, but not for that of its record"
                .to_owned(),
        );
        return (Verdict::RecordStale, evidence);
    }
    if found.has_news() {
        return (Verdict::ReturnPath, evidence);
    }
    if !node.is_empty() {
        if found.known == Some(Known::NoHandshake) {
            evidence
                .push(format!("{port} is closed to this node, or its record has another key than its node"));
            return (Verdict::TunnelBlocked, evidence);
        }
        evidence.push(match found.port {
            Some(_) => format!("nothing says that {port} is closed there"),
            None => "the node does not answer for its pods' addresses, nor say why not".to_owned(),
        });
        return (Verdict::TunnelBlocked, evidence);
    }
    evidence.push(found.node_silence());
    if let Some(by) = found.unreachable {
        evidence.push(format!("{by} says that the node can't be reached"));
        return (Verdict::PeerDead, evidence);
    }
    if found.solicit.is_yes() {
        // A node that is down is as silent to that, unless the network answers in its place, as some clouds do.
        evidence.push(
            "somebody answers on the link for its address, so it may be up and drop what it is asked"
                .to_owned(),
        );
        return (Verdict::Unknown, evidence);
    }
    if found.solicit.is_no() {
        evidence.push("nobody answers on the link for its address".to_owned());
    }
    match (found.node_answered, found.overlay_answered) {
        (false, false) if found.solicit.is_no() => {}
        (true, _) => evidence.push("it answered before".to_owned()),
        (false, true) => evidence.push(
            "it answered before, though never on the underlay: a blocked tunnel looks the same".to_owned(),
        ),
        (false, false) => {
            evidence.push("it has never answered since this agent started".to_owned());
            return (Verdict::Unknown, evidence);
        }
    }
    (Verdict::PeerDead, evidence)
}
