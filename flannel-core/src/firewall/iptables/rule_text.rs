//! Rules as the arguments of iptables, which `iptables-save` prints. Pure.

use std::fmt::Write;

use crate::addr::Subnet;
use crate::firewall::rules::{Chain, KUBE_MARK, Mark, Rule, Side, Verdict};

/// The place of a chain's rules. Upstream: pkg/trafficmngr/iptables/iptables.go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Home {
    /// The table.
    pub(super) table: &'static str,
    /// The chain that has the rules.
    pub(super) chain: &'static str,
    /// The built-in chain that jumps to it.
    pub(super) from: &'static str,
    /// The comment of each rule.
    pub(super) comment: &'static str,
}

impl Home {
    pub(super) fn of(chain: Chain) -> Self {
        match chain {
            Chain::Masquerade => {
                Self { table: "nat", chain: "FLANNEL-POSTRTG", from: "POSTROUTING", comment: "flanneld masq" }
            }
            Chain::Forward => {
                Self { table: "filter", chain: "FLANNEL-FWD", from: "FORWARD", comment: "flanneld forward" }
            }
        }
    }

    /// The arguments of the rule that jumps to the chain.
    pub(super) fn jump(self) -> String {
        format!("-m comment --comment \"{}\" -j {}", self.comment, self.chain)
    }

    /// The arguments of a rule.
    pub(super) fn render(self, rule: &Rule) -> String {
        let mut text = String::new();
        match rule.mark {
            Some(Mark::Bit) => _ = write!(text, "-m mark --mark {KUBE_MARK:#x}/{KUBE_MARK:#x} "),
            Some(Mark::Exact) => _ = write!(text, "-m mark --mark {KUBE_MARK:#x} "),
            None => {}
        }
        for (option, side) in [("-s", rule.src), ("-d", rule.dst)] {
            if let Some(Side { subnet, outside }) = side {
                let not = if outside { "! " } else { "" };
                _ = write!(text, "{not}{option} {subnet} ");
            }
        }
        _ = write!(text, "-m comment --comment \"{}\" -j ", self.comment);
        text.push_str(match rule.verdict {
            Verdict::Return => "RETURN",
            Verdict::Accept => "ACCEPT",
            Verdict::Masquerade { fully_random: false } => "MASQUERADE",
            Verdict::Masquerade { fully_random: true } => "MASQUERADE --random-fully",
        });
        text
    }
}

/// A rule that was parsed completely.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) comment: String,
    mark: Option<Mark>,
    src: Option<Side>,
    dst: Option<Side>,
    /// The chain that it jumps to, or its verdict.
    pub(super) target: String,
    fully_random: bool,
    says_how_to_reject: bool,
}

impl Read {
    /// Parses the arguments of a rule; `None` if it has arguments that ours never have.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut read = Self::default();
        let words = words(text)?;
        let mut words = words.iter().map(String::as_str);
        let mut seen = Vec::new();
        while let Some(word) = words.next() {
            let (outside, option) = if word == "!" { (true, words.next()?) } else { (false, word) };
            if option == "-m" {
                matches!(words.next()?, "mark" | "comment").then_some(())?;
                continue;
            }
            if seen.contains(&option) || outside && !matches!(option, "-s" | "-d") {
                return None;
            }
            seen.push(option);
            match option {
                "-s" => read.src = Some(Side { subnet: subnet(words.next()?)?, outside }),
                "-d" => read.dst = Some(Side { subnet: subnet(words.next()?)?, outside }),
                "--mark" => read.mark = Some(mark(words.next()?)?),
                "--comment" => words.next()?.clone_into(&mut read.comment),
                "-j" => words.next()?.clone_into(&mut read.target),
                "--random-fully" => read.fully_random = true,
                "--reject-with" => _ = (words.next()?, read.says_how_to_reject = true),
                _ => return None,
            }
        }
        Some(read)
    }

    /// The rule, if it is one that a chain of ours can have.
    pub(super) fn rule(&self) -> Option<Rule> {
        let fully_random = self.fully_random;
        let verdict = match self.target.as_str() {
            "MASQUERADE" => Verdict::Masquerade { fully_random },
            _ if fully_random => return None,
            "RETURN" => Verdict::Return,
            "ACCEPT" => Verdict::Accept,
            _ => return None,
        };
        let Self { mark, src, dst, .. } = *self;
        (!self.says_how_to_reject).then_some(Rule { mark, src, dst, verdict })
    }

    /// Whether the rule matches every packet.
    pub(super) fn is_unconditional(&self) -> bool {
        self.mark.is_none() && self.src.is_none() && self.dst.is_none()
    }
}

fn subnet(text: &str) -> Option<Subnet> {
    let subnet: Subnet = text.parse().ok()?;
    // An address with host bits is not from one of our rules: iptables clears them.
    let (addr, _) = text.split_once('/')?;
    (addr.parse() == Ok(subnet.base())).then_some(subnet)
}

fn mark(text: &str) -> Option<Mark> {
    let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let (value, mask) = match text.split_once('/') {
        Some((value, mask)) => (number(value)?, number(mask)?),
        None => (number(text)?, u32::MAX),
    };
    match (value, mask) {
        (KUBE_MARK, KUBE_MARK) => Some(Mark::Bit),
        (KUBE_MARK, u32::MAX) => Some(Mark::Exact),
        _ => None,
    }
}

/// The words of a line as iptables-restore splits it: at blanks outside of double quotes, in which a backslash escapes.
/// `None` if a quote is not closed.
pub(in crate::firewall) fn words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let (mut is_quoted, mut is_escaped) = (false, false);
    for letter in line.chars() {
        if is_quoted && !is_escaped && letter == '\\' {
            is_escaped = true;
        } else if letter == '"' && !is_escaped {
            is_quoted = !is_quoted;
            word.get_or_insert_default();
        } else if letter.is_ascii_whitespace() && !is_quoted {
            words.extend(word.take());
        } else {
            word.get_or_insert_default().push(letter);
            is_escaped = false;
        }
    }
    words.extend(word);
    (!is_quoted).then_some(words)
}
