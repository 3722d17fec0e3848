//! Finds the iptables programs of this host, and which of the two variants it uses.
//!
//! The choice is that of Kubernetes' iptables-wrapper: the variant with the kubelet's chains, else the one with more
//! rules, else that of plain `iptables`.

use std::fmt;
use std::io;

use super::rule_text::Home;
use super::save::Dump;
use crate::addr::{Family, PerFamily};
use crate::firewall::error::FirewallError;
use crate::firewall::nft::transaction::lacking;
use crate::firewall::program::run;
use crate::firewall::rules::Chain;
use crate::netlink::nftables::NfTables;
use crate::netns::Netns;

/// Chains with which the kubelet marks the variant that it uses.
const KUBELET_CHAINS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// The variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The kernel's `nf_tables`.
    Nft,
    /// The kernel's `ip_tables`.
    Legacy,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// The name of the manager with this variant.
    pub(super) fn manager(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        })
    }
}

/// The names of one variant's programs for one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Programs {
    pub(super) command: &'static str,
    pub(super) save: &'static str,
    pub(super) restore: &'static str,
}

/// The programs of a variant; those with plain names if `kind` is `None`.
fn programs(kind: Option<Kind>, family: Family) -> Programs {
    let [command, save, restore] = match (family, kind) {
        (Family::V4, None) => ["iptables", "iptables-save", "iptables-restore"],
        (Family::V6, None) => ["ip6tables", "ip6tables-save", "ip6tables-restore"],
        (Family::V4, Some(Kind::Nft)) => ["iptables-nft", "iptables-nft-save", "iptables-nft-restore"],
        (Family::V6, Some(Kind::Nft)) => ["ip6tables-nft", "ip6tables-nft-save", "ip6tables-nft-restore"],
        (Family::V4, Some(Kind::Legacy)) => {
            ["iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore"]
        }
        (Family::V6, Some(Kind::Legacy)) => {
            ["ip6tables-legacy", "ip6tables-legacy-save", "ip6tables-legacy-restore"]
        }
    };
    Programs { command, save, restore }
}

/// A release of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u32, u32, u32);

impl Version {
    /// The first version with `MASQUERADE --random-fully`.
    pub(super) const RANDOM_FULLY: Self = Self(1, 6, 2);
    /// The first version whose `iptables-restore` has `-w`.
    pub(super) const WAIT: Self = Self(1, 6, 2);
}

/// Parses the output of `iptables --version`, such as `iptables v1.8.9 (nf_tables)`.
pub(super) fn version(said: &str) -> Option<(Version, Kind)> {
    let mut words = said.split_whitespace().skip_while(|word| !word.starts_with('v'));
    let mut parts = words.next()?.strip_prefix('v')?.split('.').map(str::parse);
    let mut part = || parts.next()?.ok();
    let version = Version(part()?, part()?, part().unwrap_or(0));
    // Before 1.8 there was only one variant, without a name.
    let kind = if words.next() == Some("(nf_tables)") { Kind::Nft } else { Kind::Legacy };
    Some((version, kind))
}

/// The tables of the legacy variant that are in use in a network namespace. Reading this list creates none.
pub(in crate::firewall) fn legacy_tables(netns: &Netns, family: Family) -> io::Result<Vec<String>> {
    let name = if family == Family::V4 { "ip" } else { "ip6" };
    match netns.proc_net(&format!("{name}_tables_names")) {
        Ok(names) => Ok(names.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether a network namespace may have rules of one of the variants. No program is run for that.
pub(in crate::firewall) async fn may_have_rules(netns: &Netns) -> bool {
    let none = |family| legacy_tables(netns, family).is_ok_and(|names| names.is_empty());
    !Family::ALL.into_iter().all(none) || has_nft_tables(netns).await
}

/// Whether one of the tables of iptables' nft variant is there. If that can't be read, it may be.
async fn has_nft_tables(netns: &Netns) -> bool {
    let find = async {
        let mut kernel = netns.run(NfTables::open)?.map_err(lacking)?;
        for family in Family::ALL {
            for table in ["nat", "filter"] {
                if kernel.table(family.into(), table).await.map_err(lacking)?.is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    };
    match find.await {
        Err(FirewallError::NoNfTables(_)) => false,
        found => found.unwrap_or(true),
    }
}

/// The programs that this host has.
#[derive(Debug)]
pub(super) struct Installed {
    nft: PerFamily<Programs>,
    legacy: PerFamily<Programs>,
    version: Option<Version>,
    /// The variant of plain `iptables`.
    plain: Option<Kind>,
}

impl Installed {
    fn programs(&self, kind: Kind) -> &PerFamily<Programs> {
        match kind {
            Kind::Nft => &self.nft,
            Kind::Legacy => &self.legacy,
        }
    }

    /// Whether a variant supports all of these families, and at least one.
    fn does(&self, kind: Kind, families: &[Family]) -> bool {
        let programs = self.programs(kind);
        !programs.is_empty() && families.iter().all(|family| programs.get(*family).is_some())
    }
}

/// Finds the programs. Fails if no variant has all that `families` need.
pub(super) async fn installed(netns: &Netns, families: &[Family]) -> Result<Installed, FirewallError> {
    let plain = ask_version(netns, programs(None, Family::V4).command).await?;
    let of_kind = async |kind| {
        let mut of_kind = PerFamily::default();
        for family in Family::ALL {
            let is_plain = plain.is_some_and(|(_, plain)| plain == kind);
            for names in [Some(kind)].into_iter().chain(is_plain.then_some(None)) {
                let programs = programs(names, family);
                if of_kind.get(family).is_none() && first_missing(netns, programs).await?.is_none() {
                    *of_kind.get_mut(family) = Some(programs);
                }
            }
        }
        Ok::<_, FirewallError>(of_kind)
    };
    let (nft, legacy) = (of_kind(Kind::Nft).await?, of_kind(Kind::Legacy).await?);
    let mut found = Installed { nft, legacy, version: None, plain: plain.map(|(_, kind)| kind) };
    if !Kind::ALL.into_iter().any(|kind| found.does(kind, families)) {
        // The error names the programs that every host with iptables has.
        let mut program = "iptables-save";
        for family in families {
            program = first_missing(netns, programs(None, *family)).await?.unwrap_or(program);
        }
        return Err(FirewallError::Missing { program: program.to_owned(), package: "iptables" });
    }
    found.version = plain.map(|(version, _)| version);
    if let (None, Some((_, any))) = (plain, found.nft.iter().chain(found.legacy.iter()).next()) {
        found.version = ask_version(netns, any.command).await?.map(|(version, _)| version);
    }
    Ok(found)
}

async fn ask_version(netns: &Netns, program: &str) -> Result<Option<(Version, Kind)>, FirewallError> {
    Ok(run_if_there(netns, program).await?.and_then(|said| version(&said)))
}

/// The first required program that is not installed.
async fn first_missing(netns: &Netns, programs: Programs) -> Result<Option<&'static str>, FirewallError> {
    for program in [programs.save, programs.restore] {
        if run_if_there(netns, program).await?.is_none() {
            return Ok(Some(program));
        }
    }
    Ok(None)
}

/// The version output of a program, which touches no table; `None` if it is not installed.
async fn run_if_there(netns: &Netns, program: &str) -> Result<Option<String>, FirewallError> {
    match run(netns, program, &["--version"], "").await {
        Ok(said) => Ok(Some(said)),
        // Old programs don't know the option, but they are installed.
        Err(FirewallError::Failed { .. }) => Ok(Some(String::new())),
        Err(FirewallError::Missing { .. }) => Ok(None),
        // The same error occurs if a folder of the search path is not accessible.
        Err(FirewallError::Run { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The chosen variant.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) kind: Kind,
    /// The reason, for the log.
    pub(super) why: String,
    pub(super) version: Option<Version>,
    installed: Installed,
}

impl Found {
    /// The programs of a variant, for the families that it supports here.
    pub(super) fn programs(&self, kind: Kind) -> impl Iterator<Item = (Family, Programs)> {
        self.installed.programs(kind).iter().map(|(family, programs)| (family, *programs))
    }

    /// How much others use a variant; `None` if it does not support all of `families` here.
    pub(super) async fn usage(
        &self,
        netns: &Netns,
        kind: Kind,
        families: &[Family],
    ) -> Result<Option<Usage>, FirewallError> {
        if !self.installed.does(kind, families) {
            return Ok(None);
        }
        usage(netns, kind, self.installed.programs(kind)).await
    }

    /// Sets another choice.
    pub(super) fn switch_to(&mut self, kind: Kind, why: &str) {
        let of = self.version.map_or(String::new(), |Version(a, b, c)| format!(" {a}.{b}.{c}"));
        (self.kind, self.why) = (kind, format!("iptables{of} ({kind}): {why}"));
    }
}

/// Finds the programs and chooses.
pub(super) async fn find(netns: &Netns, families: &[Family]) -> Result<Found, FirewallError> {
    let installed = installed(netns, families).await?;
    let (version, plain) = (installed.version, installed.plain);
    let mut found = Found { kind: Kind::Nft, why: String::new(), version, installed };
    let nft = found.usage(netns, Kind::Nft, families).await?;
    let legacy = found.usage(netns, Kind::Legacy, families).await?;
    let (kind, why) = choose(nft, legacy, plain);
    found.switch_to(kind, &why);
    Ok(found)
}

/// How much others use a variant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) has_kubelet_chains: bool,
    pub(super) rules: usize,
}

/// Reads the rules without creating anything. `None` if this kernel does not have the variant.
async fn usage(
    netns: &Netns,
    kind: Kind,
    programs: &PerFamily<Programs>,
) -> Result<Option<Usage>, FirewallError> {
    let mut usage = Usage::default();
    for (family, programs) in programs.iter() {
        if kind == Kind::Legacy && legacy_tables(netns, family).unwrap_or_default().is_empty() {
            continue;
        }
        let text = match run(netns, programs.save, &[""; 0], "").await {
            Ok(text) => text,
            Err(FirewallError::Failed { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let told = usage_of(&text);
        usage.has_kubelet_chains |= told.has_kubelet_chains;
        usage.rules += told.rules;
    }
    Ok(Some(usage))
}

/// Rules of ours, or of a Go agent, don't count: they show where an agent put them, not which variant the host uses.
pub(super) fn usage_of(text: &str) -> Usage {
    let Ok(dump) = Dump::parse(text) else { return Usage::default() };
    let comments = Chain::ALL.map(|chain| format!("--comment \"{}\"", Home::of(chain).comment));
    let is_others = |rule: &&str| !comments.iter().any(|comment| rule.contains(comment));
    Usage {
        has_kubelet_chains: KUBELET_CHAINS
            .iter()
            .any(|chain| dump.table("mangle").is_some_and(|table| table.has(chain))),
        rules: dump.rules().filter(is_others).count(),
    }
}

/// Chooses a variant, with the reason. A variant that can't be used is `None`.
pub(super) fn choose(nft: Option<Usage>, legacy: Option<Usage>, plain: Option<Kind>) -> (Kind, String) {
    let (nft, legacy) = match (nft, legacy) {
        (Some(nft), Some(legacy)) => (nft, legacy),
        (None, Some(_)) => return (Kind::Legacy, "the other variant can't be used here".to_owned()),
        (_, None) => return (Kind::Nft, "the other variant can't be used here".to_owned()),
    };
    if nft.has_kubelet_chains || legacy.has_kubelet_chains {
        let kind = if nft.has_kubelet_chains { Kind::Nft } else { Kind::Legacy };
        return (kind, "the kubelet uses it".to_owned());
    }
    let counts =
        |more: usize, fewer: usize| format!("{more} rules of others are there, {fewer} in the other variant");
    match nft.rules.cmp(&legacy.rules) {
        std::cmp::Ordering::Greater => (Kind::Nft, counts(nft.rules, legacy.rules)),
        std::cmp::Ordering::Less => (Kind::Legacy, counts(legacy.rules, nft.rules)),
        std::cmp::Ordering::Equal => match plain {
            Some(kind) => (kind, "plain `iptables` is this variant, and others use neither more".to_owned()),
            None => (Kind::Nft, "others use neither variant more".to_owned()),
        },
    }
}
