//! The capabilities and limits of the process.

use std::io;

use flannel_core::firewall::iptables::{self, UnseenRules};
use flannel_core::netns::Netns;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
};

/// The capabilities that the agent uses, the second one for iptables' legacy variant and udp's ICMP errors.
const USED: [CapabilitySet; 2] = [CapabilitySet::NET_ADMIN, CapabilitySet::NET_RAW];

/// Raises the capabilities that the program's file grants to a user other than root (setcap(8)), and passes them on to
/// the programs that keep firewall rules (ambient capabilities). A container runtime gives such a user no others.
///
/// Changes nothing for root, and where a supervisor has set them (systemd's `AmbientCapabilities=`).
pub(crate) fn raise_granted() -> io::Result<()> {
    let now = capabilities(None)?;
    let Some(wanted) = to_take(rustix::process::geteuid().is_root(), now) else { return Ok(()) };
    set_capabilities(None, wanted)?;
    for one in USED.into_iter().filter(|one| wanted.permitted.contains(*one)) {
        configure_capability_in_ambient_set(one, true)?;
    }
    Ok(())
}

/// The capability sets to set, if the process may have more than it has.
fn to_take(is_root: bool, now: CapabilitySets) -> Option<CapabilitySets> {
    let used = now.permitted & USED.into_iter().collect::<CapabilitySet>();
    let has = now.effective.contains(used) && now.inheritable.contains(used);
    (!is_root && !has).then_some(CapabilitySets { effective: used, permitted: used, inheritable: used })
}

/// The remark about rules of the host that this process can't see, and what to do.
pub(crate) fn unseen_rules() -> Option<String> {
    let has_net_raw = capabilities(None).is_ok_and(|has| has.effective.contains(CapabilitySet::NET_RAW));
    let unseen = iptables::unseen_rules(&Netns::current().ok()?, has_net_raw)?;
    let add = " (flanneld-net-raw.conf for systemd, capabilities.add of the pod)";
    Some(format!("{unseen}{}", if unseen == UnseenRules::NoNetRaw { add } else { "" }))
}

/// Raises the limit of open files as far as the process may. The usual one, 1024, is for programs that use select(2).
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_is_permitted_and_of_use() {
        let none = CapabilitySet::empty();
        let (admin, raw) = (CapabilitySet::NET_ADMIN, CapabilitySet::NET_RAW);
        let sets = |permitted, effective, inheritable| CapabilitySets { effective, permitted, inheritable };
        for (is_root, now, want) in [
            // A pod whose image grants both, with both and with one in its bounding set.
            (false, sets(admin | raw, none, none), Some(sets(admin | raw, admin | raw, admin | raw))),
            (false, sets(admin, none, none), Some(sets(admin, admin, admin))),
            // What nobody needs is given up.
            (false, sets(admin | CapabilitySet::CHOWN, none, none), Some(sets(admin, admin, admin))),
            // As systemd starts it.
            (false, sets(admin, admin, admin), None),
            // An ordinary user, and root.
            (false, sets(none, none, none), None),
            (true, sets(admin | raw, admin | raw, none), None),
        ] {
            assert_eq!(to_take(is_root, now), want, "{is_root} {now:?}");
        }
    }

    #[test]
    fn the_limit_of_open_files_is_the_hard_one() {
        raise_descriptor_limit().unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
