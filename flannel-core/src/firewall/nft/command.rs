//! The changes of our tables: what is sent to the kernel, and the same as `nft` would read it.

use std::fmt::{self, Write};

use crate::addr::Family;
use crate::firewall::rules::{Chain, KUBE_MARK, Mark, Rule, Side, Verdict};
use crate::netlink::nftables::{Change, Edit, Hook, HookKind, Ruling, Sense, TableFamily, Term};

/// The name of a family's table, which is upstream's.
pub(super) fn table_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel-ipv4",
        Family::V6 => "flannel-ipv6",
    }
}

/// The family of a family's table.
pub(super) fn family_of(family: Family) -> TableFamily {
    TableFamily::from(family)
}

/// A change of a family's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) family: Family,
    pub(super) does: Does,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Does {
    /// Makes the table, or switches its chains on.
    AddTable,
    /// Removes it with everything in it.
    DeleteTable,
    /// Makes a base chain, or gives it its policy.
    AddChain(&'static Declared),
    /// Removes all rules of a chain.
    FlushChain(&'static str),
    /// Removes a chain that has no rules.
    DeleteChain(&'static str),
    /// Adds a rule to a chain: at its end, or before the rule with a handle.
    AddRule(&'static str, Option<u64>, Rule),
    /// Removes the rule of a chain that has this handle.
    DeleteRule(&'static str, u64),
}

/// Upstream's name of a chain, its comment, and its hook.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) name: &'static str,
    pub(super) comment: &'static str,
    pub(super) kind: HookKind,
    /// The names of type, hook and priority in `nft`.
    pub(super) words: [&'static str; 3],
    /// `NF_INET_*`.
    pub(super) hook: u32,
    pub(super) priority: i32,
}

/// Upstream's chains.
static MASQUERADE: Declared = Declared {
    name: "postrtg",
    comment: "chain to manage traffic masquerading by flannel",
    kind: HookKind::Nat,
    words: ["nat", "postrouting", "srcnat"],
    hook: 4,
    priority: 100,
};
static FORWARD: Declared = Declared {
    name: "forward",
    comment: "chain to accept flannel traffic",
    kind: HookKind::Filter,
    words: ["filter", "forward", "filter"],
    hook: 2,
    priority: 0,
};

pub(super) fn declared(chain: Chain) -> &'static Declared {
    match chain {
        Chain::Masquerade => &MASQUERADE,
        Chain::Forward => &FORWARD,
    }
}

impl Declared {
    pub(super) fn hook(&self) -> Hook {
        Hook { kind: self.kind, number: self.hook, priority: self.priority, link: None, drops: false }
    }
}

/// The comment of a family's table, which is upstream's.
fn comment(family: Family) -> &'static str {
    match family {
        Family::V4 => "rules for flannel-ipv4",
        Family::V6 => "rules for flannel-ipv6",
    }
}

impl Command {
    /// What is sent to the kernel.
    pub(super) fn change(&self) -> Change<'static> {
        let (family, table) = (family_of(self.family), table_name(self.family));
        let (chain, edit) = match &self.does {
            Does::AddTable => return Change::Declare(family, table, comment(self.family)),
            Does::DeleteTable => return Change::Delete(family, table),
            Does::AddChain(declared) => (declared.name, Edit::Declare(declared.hook(), declared.comment)),
            Does::FlushChain(chain) => (*chain, Edit::Flush),
            Does::DeleteChain(chain) => (*chain, Edit::Delete),
            Does::AddRule(chain, before, rule) => (*chain, Edit::Rule(*before, terms(rule))),
            Does::DeleteRule(chain, handle) => (*chain, Edit::DeleteRule(*handle)),
        };
        Change::Edit { family, table, chain, edit }
    }
}

/// The command as `nft` reads it.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = format!("{} {}", family_of(self.family).name(), table_name(self.family));
        match &self.does {
            Does::AddTable => write!(f, "add table {table} {{ comment \"{}\" ; }}", comment(self.family)),
            Does::DeleteTable => write!(f, "delete table {table}"),
            Does::AddChain(Declared { name, comment, words: [kind, hook, priority], .. }) => write!(
                f,
                "add chain {table} {name} {{ type {kind} hook {hook} priority {priority} ; policy accept ; \
                 comment \"{comment}\" ; }}"
            ),
            Does::FlushChain(chain) => write!(f, "flush chain {table} {chain}"),
            Does::DeleteChain(chain) => write!(f, "delete chain {table} {chain}"),
            Does::AddRule(chain, None, rule) => write!(f, "add rule {table} {chain} {}", text(rule)),
            Does::AddRule(chain, Some(handle), rule) => {
                write!(f, "insert rule {table} {chain} handle {handle} {}", text(rule))
            }
            Does::DeleteRule(chain, handle) => write!(f, "delete rule {table} {chain} handle {handle}"),
        }
    }
}

/// A rule as the kernel gets it.
pub(super) fn terms(rule: &Rule) -> Vec<Term> {
    let sense = |side: &Side| if side.outside { Sense::Not } else { Sense::Is };
    let mut terms = Vec::new();
    // Only rules of Go compare the whole mark. They are recognised, and never written.
    terms.extend(rule.mark.map(|_| Term::Marked(KUBE_MARK)));
    terms.extend(rule.src.map(|side| Term::Src(side.subnet, sense(&side))));
    terms.extend(rule.dst.map(|side| Term::Dst(side.subnet, sense(&side))));
    terms.push(match rule.verdict {
        Verdict::Return => Term::Then(Ruling::Return),
        Verdict::Accept => Term::Then(Ruling::Accept),
        Verdict::Masquerade { fully_random } => Term::Masquerade { fully_random },
    });
    terms
}

/// A rule as `nft` reads it.
pub(super) fn text(rule: &Rule) -> String {
    let mut text = String::new();
    match rule.mark {
        Some(Mark::Bit) => _ = write!(text, "meta mark & {KUBE_MARK:#x} == {KUBE_MARK:#x} "),
        Some(Mark::Exact) => _ = write!(text, "meta mark {KUBE_MARK:#x} "),
        None => {}
    }
    for (side, field) in [(rule.src, "saddr"), (rule.dst, "daddr")] {
        if let Some(Side { subnet, outside }) = side {
            let not = if outside { "!= " } else { "" };
            _ = write!(text, "{} {field} {not}{subnet} ", family_of(subnet.family()).name());
        }
    }
    text.push_str(match rule.verdict {
        Verdict::Return => "return",
        Verdict::Accept => "accept",
        Verdict::Masquerade { fully_random: true } => "masquerade fully-random",
        Verdict::Masquerade { fully_random: false } => "masquerade",
    });
    text
}
