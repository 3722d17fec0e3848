//! Reads the chains that forwarded packets enter, and knows when to read them again.

use std::collections::BTreeMap;
use std::future::pending;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::super::error::FirewallError;
use super::super::iptables::legacy_tables;
use super::super::nft::transaction::lacking;
use super::super::program::run;
use super::super::rules::Wanted;
use super::chain::{Chain, Policy, Realm, RuleName, Table, TableName};
use super::nft::{self, Base, Context};
use super::packet::Links;
use super::{Found, Obstacle, advice, find, iptables, text_of};
use crate::addr::Family;
use crate::kernel::{Kernel, KernelError};
use crate::netlink::nftables::{NfTables, TableFamily};
use crate::netlink::{Netlink, RulesetChange, RulesetEvents};
use crate::netns::Netns;
use crate::resync;

/// A firewall that restarts makes many changes; they are read together after this time.
const SETTLE: Duration = Duration::from_millis(200);
/// With a rule set that changes all the time, reading takes at most one part in this many of the time.
const SHARE: u32 = 20;
/// How many times rules are read that change meanwhile, before what was read last is taken. A later look follows the last change.
const TRIES: usize = 3;
/// The most chains of a table that are read. The effect of others is unknown.
const CHAINS: usize = 250;

/// What other firewalls on this host do with forwarded packets.
pub(in crate::firewall) struct Surroundings {
    netns: Netns,
    /// `None` until the kernel has `nf_tables`.
    kernel: Option<NfTables>,
    /// `None` if the kernel sends no notifications.
    events: Option<RulesetEvents>,
    /// How often legacy tables are compared, for which there are no notifications.
    resync: Duration,
    next_comparison: Instant,
    legacy: u64,
    /// The base chains on the path of forwarded packets; `None` if they must be read.
    bases: Option<Vec<Base>>,
    is_due: bool,
    not_before: Instant,
    next_resync: Instant,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").field("bases", &self.bases).finish_non_exhaustive()
    }
}

impl Surroundings {
    /// Subscribes to notifications in a network namespace.
    pub(in crate::firewall) fn open(netns: &Netns, resync: Duration) -> Self {
        let told = |error| debug!(%error, "no notifications of nf_tables");
        let (events, now) = (RulesetEvents::open(netns).map_err(told).ok(), Instant::now());
        let resync = resync.max(Duration::from_secs(1));
        Self {
            netns: netns.clone(),
            kernel: None,
            events,
            resync,
            next_comparison: now,
            legacy: 0,
            bases: None,
            is_due: true,
            not_before: now,
            next_resync: now + resync::PERIOD,
        }
    }

    /// The chains that drop packets of `want`'s pods; `None` if nothing changed since the last call.
    pub(in crate::firewall) async fn look(&mut self, want: &Wanted) -> Option<Vec<Obstacle>> {
        if !self.is_due || Instant::now() < self.not_before {
            return None;
        }
        // Changes from here on make the next read due.
        if let Some(events) = &mut self.events {
            let change = events.pending();
            self.note(&change);
        }
        self.is_due = false;
        let begin = Instant::now();
        if begin >= self.next_resync {
            self.bases = None;
            self.next_resync = begin + resync::PERIOD;
        }
        let (links, names) = links(&self.netns, want).await;
        let Some(mut tables) = self.nf_tables(names).await else {
            // What was seen last counts until they can be read again.
            (self.is_due, self.not_before) = (true, Instant::now() + self.resync);
            return None;
        };
        let legacy = legacy_dumps(&self.netns).await;
        self.legacy = fingerprint(&legacy);
        for (family, dump) in &legacy {
            tables.extend(iptables::tables(dump, |name| table_name(Realm::Legacy, *family, name), *family));
        }
        let mut obstacles = Vec::new();
        for found in find(&tables, &want.ranges, &links) {
            let table = tables.iter().find(|table| table.name == found.table);
            let advice = table.map_or_else(String::new, |table| advice(table, &found, &want.ranges));
            obstacles.push(obstacle(&self.netns, found, advice).await);
        }
        let now = Instant::now();
        self.next_comparison = now + self.resync;
        self.not_before = now + (now - begin).saturating_mul(SHARE).max(SETTLE);
        Some(obstacles)
    }

    /// Waits until the chains should be read again. Dropping the future loses nothing.
    pub(in crate::firewall) async fn changed(&mut self) {
        loop {
            tokio::select! {
                () = sleep_until(self.not_before), if self.is_due => return,
                () = sleep_until(self.next_resync), if !self.is_due => self.set_due(),
                change = next(&mut self.events) => self.note(&change),
                () = sleep_until(self.next_comparison), if !self.is_due => {
                    let dumps = legacy_dumps(&self.netns).await;
                    if fingerprint(&dumps) != self.legacy {
                        self.set_due();
                    }
                    self.next_comparison = Instant::now() + self.resync;
                }
            }
        }
    }

    fn note(&mut self, change: &RulesetChange) {
        if change.unknown || change.base_chains {
            self.bases = None;
            self.set_due();
        }
        let is_changed = |base: &Base| change.tables.contains(&(base.family.number(), base.table.clone()));
        if self.bases.iter().flatten().any(is_changed) {
            self.set_due();
        }
    }

    /// Reads base chains anew at the next look, for a caller who does not wait for notifications.
    #[cfg(test)]
    pub(super) fn forget(&mut self) {
        self.bases = None;
    }

    /// Makes the next read due, because something may have changed without a notification.
    pub(in crate::firewall) fn set_due(&mut self) {
        if !std::mem::replace(&mut self.is_due, true) {
            self.not_before = self.not_before.max(Instant::now() + SETTLE);
        }
    }

    /// The tables of `nf_tables`, as far as forwarded packets can reach them; `None` if they can't be read.
    pub(super) async fn nf_tables(&mut self, links: BTreeMap<u32, String>) -> Option<Vec<Table>> {
        let mut context = Context { links, ..Context::default() };
        let mut tables = Vec::new();
        for _ in 0..TRIES {
            match self.nf_tables_once(&mut context).await {
                Ok((read, true)) => return Some(read),
                // Somebody made a change meanwhile, so a table may have been read half before it and half after it.
                Ok((read, false)) => (tables, self.bases) = (read, None),
                Err(error) => {
                    debug!(%error, "chains of nf_tables can't be read");
                    self.bases = None;
                    // Without nf_tables there are none, and whoever may not see them learns nothing from trying again.
                    let is_lasting = matches!(
                        lacking(error),
                        FirewallError::NoNfTables(_) | FirewallError::NotPermitted(_)
                    );
                    return is_lasting.then(Vec::new);
                }
            }
        }
        Some(tables)
    }

    /// The same, and whether no rule changed meanwhile.
    async fn nf_tables_once(&mut self, context: &mut Context) -> Result<(Vec<Table>, bool), KernelError> {
        if self.kernel.is_none() {
            self.kernel = self.netns.run(NfTables::open).ok().and_then(Result::ok);
        }
        let Some(kernel) = &mut self.kernel else { return Ok((Vec::new(), true)) };
        let generation = kernel.generation().await?;
        if self.bases.is_none() {
            self.bases = Some(read_bases(kernel).await?);
        }
        let mut tables = Vec::new();
        let bases = self.bases.as_deref().unwrap_or_default();
        for bases in bases.chunk_by(|a, b| (a.family, &a.table) == (b.family, &b.table)) {
            tables.push(read_table(&self.netns, kernel, bases, context).await?);
        }
        Ok((tables, kernel.generation().await? == generation))
    }
}

/// The base chains on the path of forwarded packets, those of a table side by side.
async fn read_bases(kernel: &mut NfTables) -> Result<Vec<Base>, KernelError> {
    let mut bases = Vec::new();
    for family in nft::FAMILIES {
        let chains = kernel.chains(family).await?.into_iter();
        bases.extend(
            chains.filter_map(|(table, (chain, hook))| nft::base(family, table, chain, hook.as_ref())),
        );
    }
    bases.sort_by(|a, b| (a.family.name(), &a.table).cmp(&(b.family.name(), &b.table)));
    Ok(bases)
}

/// Finds the chains in a network namespace that surely drop packets of these pods, once. A table that can't be read counts
/// as letting packets pass.
///
/// # Panics
///
/// Outside of a tokio runtime with I/O and time.
pub async fn obstacles(netns: &Netns, want: &Wanted) -> Vec<Obstacle> {
    Surroundings::open(netns, resync::PERIOD).look(want).await.unwrap_or_default()
}

/// The next notification of the kernel.
async fn next(events: &mut Option<RulesetEvents>) -> RulesetChange {
    match events {
        Some(events) => events.next().await,
        None => pending().await,
    }
}

/// Reads base chains of a table, and all chains that they jump to.
async fn read_table(
    netns: &Netns,
    kernel: &mut NfTables,
    bases: &[Base],
    context: &mut Context,
) -> Result<Table, KernelError> {
    let Base { family, table, .. } = &bases[0];
    let mut chains: Vec<Chain> = Vec::new();
    let policy = |drops| if drops { Policy::Drop } else { Policy::Accept };
    let mut open: Vec<_> = bases.iter().map(|base| (base.chain.clone(), Some(policy(base.drops)))).collect();
    let mut is_of_iptables = false;
    context.sets.clear();
    while let Some((chain, policy)) = open.pop().filter(|_| chains.len() < CHAINS) {
        if chains.iter().any(|seen| seen.name == chain) {
            continue;
        }
        let seen = kernel.rules(*family, table, &chain).await?;
        for set in nft::sets_in(&seen) {
            context.sets.insert(set.to_owned(), kernel.any_elements(*family, table, set).await?);
        }
        let (rules, of_iptables) = nft::rules(*family, &seen, context);
        is_of_iptables |= of_iptables;
        open.extend(nft::targets(&rules).map(|target| (target.to_owned(), None)));
        chains.push(Chain { name: chain, policy, rules });
    }
    let of = if *family == TableFamily::Ip6 { Family::V6 } else { Family::V4 };
    if is_of_iptables && let Some(table) = by_iptables_nft(netns, of, table).await.pop() {
        return Ok(table);
    }
    let name = TableName { realm: Realm::NfTables, family: family.name().to_owned(), name: table.clone() };
    Ok(Table { name, chains })
}

/// A table as the programs of iptables' nft variant show it.
async fn by_iptables_nft(netns: &Netns, family: Family, table: &str) -> Vec<Table> {
    let programs = match family {
        Family::V4 => ["iptables-nft-save", "iptables-save"],
        Family::V6 => ["ip6tables-nft-save", "ip6tables-save"],
    };
    let dump = save(netns, programs, &["-t", table], true).await;
    iptables::tables(&dump, |name| table_name(Realm::NfTables, family, name), family)
}

fn table_name(realm: Realm, family: Family, name: &str) -> TableName {
    let family = if family == Family::V4 { "ip" } else { "ip6" };
    TableName { realm, family: family.to_owned(), name: name.to_owned() }
}

/// The legacy tables that are in use. Reading creates none.
async fn legacy_dumps(netns: &Netns) -> Vec<(Family, String)> {
    let mut dumps = Vec::new();
    for family in Family::ALL {
        let programs = match family {
            Family::V4 => ["iptables-legacy-save", "iptables-save"],
            Family::V6 => ["ip6tables-legacy-save", "ip6tables-save"],
        };
        for table in legacy_tables(netns, family).unwrap_or_default().iter().filter(|table| *table != "nat") {
            dumps.push((family, save(netns, programs, &["-t", table], false).await));
        }
    }
    dumps
}

/// The output of the first of these programs that is installed, if it is of the variant; empty on an error.
async fn save(netns: &Netns, programs: [&str; 2], args: &[&str], is_nft: bool) -> String {
    for program in programs {
        match run(netns, program, args, "").await {
            Ok(dump) => {
                let of_nft = dump
                    .lines()
                    .next()
                    .is_some_and(|line| line.contains("nft") || line.contains("nf_tables"));
                return if of_nft == is_nft { dump } else { String::new() };
            }
            Err(FirewallError::Missing { .. }) => {}
            Err(error) => {
                debug!(%error, "rules of others can't be read");
                return String::new();
            }
        }
    }
    String::new()
}

/// A hash of dumps that ignores times and counters.
fn fingerprint(dumps: &[(Family, String)]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (family, dump) in dumps {
        family.hash(&mut hasher);
        for line in dump.lines().filter(|line| !line.starts_with('#')) {
            let line = if line.starts_with(':') { line.split(" [").next().unwrap_or(line) } else { line };
            line.hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// The links and their roles, and their names by index. If they can't be read, no role is known.
async fn links(netns: &Netns, want: &Wanted) -> (Links, BTreeMap<u32, String>) {
    let read = async {
        let mut kernel = Netlink::open_in(netns)?;
        Ok::<_, crate::kernel::KernelError>((kernel.links().await?, kernel.addresses().await?))
    };
    let (links, addresses) = read.await.unwrap_or_else(|error| {
        debug!(%error, "links can't be read");
        Default::default()
    });
    let with_addresses = links.iter().map(|link| {
        let own = addresses.iter().filter(|address| address.link == link.index && address.global);
        (link.name.as_str(), link.loopback, own.map(|address| address.addr.ip()).collect())
    });
    let names = links.iter().map(|link| (link.index.0, link.name.clone())).collect();
    (Links::new(with_addresses, &want.ranges), names)
}

async fn obstacle(netns: &Netns, found: Found, advice: String) -> Obstacle {
    let Found { table: TableName { realm, family, name }, base, cut, cuts } = found;
    let listing = match &cut.rule {
        Some(RuleName::Handle(_)) => {
            let args = ["-a", "list", "chain", &family, &name, &cut.chain];
            run(netns, "nft", &args, "").await.unwrap_or_default()
        }
        _ => String::new(),
    };
    let rule = cut.rule.map(|rule| text_of(&rule, &listing));
    Obstacle { realm, family, table: name, chain: base, ends_in: cut.chain, rule, cuts, advice }
}
