//! The status in one line.

use super::{AgentStatus, Condition};

/// The most characters of a line. A supervisor shows it beside others.
const LONGEST: usize = 200;

impl AgentStatus {
    /// The status in one line of at most 200 characters, such as `ready: 10.5.3.0/24 by vxlan, 41 peers, 2 notes` or `not
    /// ready: waiting for the network config`. It is what `flanneld` tells systemd.
    pub fn summary(&self) -> String {
        let readiness = self.readiness();
        let line = match &readiness.reasons[..] {
            [] => self.ready(&readiness.notes),
            _ if self.phase.is_over() => readiness.reasons[0].text.clone(),
            [reason] => format!("not ready: {}", reason.text),
            [reason, rest @ ..] => format!("not ready: {} ({} more)", reason.text, rest.len()),
        };
        cut(&line)
    }

    fn ready(&self, notes: &[Condition]) -> String {
        let mut parts = Vec::new();
        if let Some(node) = &self.node {
            let subnets = node.lease.key.subnets();
            let subnets: Vec<String> = subnets.iter().map(|(_, subnet)| subnet.to_string()).collect();
            parts.push(format!("{} by {}", subnets.join(" "), node.backend));
        }
        if let Some(network) = &self.network {
            let (programmed, all) = (network.peers, network.peer_list.len());
            let of = if all > programmed { format!(" of {all}") } else { String::new() };
            parts.push(format!("{programmed}{of} {}", plural("peer", all.max(programmed))));
        }
        if !notes.is_empty() {
            parts.push(format!("{} {}", notes.len(), plural("note", notes.len())));
        }
        format!("ready: {}", parts.join(", "))
    }
}

fn plural(word: &str, count: usize) -> String {
    if count == 1 { word.to_owned() } else { format!("{word}s") }
}

/// One line without control characters: what the store says can be part of a reason.
fn cut(text: &str) -> String {
    let clean = |it: char| if it.is_control() { ' ' } else { it };
    let mut line: String = text.chars().take(LONGEST).map(clean).collect();
    if text.chars().nth(LONGEST).is_some() {
        line.pop();
        line.push('\u{2026}');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_short_and_one() {
        assert_eq!(cut("a\nb\u{1b}[1mc"), "a b [1mc");
        let long = cut(&"\u{e9}".repeat(201));
        assert_eq!((long.chars().count(), long.ends_with('\u{2026}')), (200, true));
        assert_eq!(cut(&"x".repeat(200)), "x".repeat(200));
    }
}
