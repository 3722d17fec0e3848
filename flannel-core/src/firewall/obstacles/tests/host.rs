//! The real programs in namespaces: what appears, changes and goes is seen.

use std::process::Command;
use std::time::Duration;

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::patiently;
use nix::sched::{CloneFlags, unshare};
use tokio::time::timeout;

use super::super::look::Surroundings;
use super::*;
use crate::firewall::rules::Wanted;
use crate::netns::Netns;

const SOON: Duration = Duration::from_secs(20);

fn sh(script: &str) {
    let output = Command::new("sh").args(["-e", "-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

struct Host {
    surroundings: Surroundings,
    wanted: Wanted,
}

impl Host {
    /// What is in the way once a change has been noticed.
    async fn after(&mut self, script: &str) -> Vec<String> {
        sh(script);
        timeout(patiently(SOON), self.surroundings.changed()).await.expect("it is noticed");
        self.look().await
    }

    async fn look(&mut self) -> Vec<String> {
        let obstacles = self.surroundings.look(&self.wanted).await.expect("a look is due");
        obstacles.iter().map(ToString::to_string).collect()
    }
}

fn with(test: &str, body: impl AsyncFnOnce(Host)) {
    in_sandbox(test, || {
        // The names of the legacy tables can only be read in a namespace that was made by who is root in it.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        sh(
            "ip link set lo up; ip link add cni0 type bridge; ip addr add 10.244.7.1/24 dev cni0; ip link add docker0 \
            type bridge; ip addr add 172.17.0.1/16 dev docker0",
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let surroundings = Surroundings::open(&Netns::current().unwrap(), Duration::from_secs(1));
            body(Host { surroundings, wanted: Wanted { ranges: ranges(), ..Wanted::default() } }).await;
        });
    });
}

fn assert_one(found: &[String], begin: &str, parts: &[&str]) {
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with(begin) && parts.iter().all(|part| found[0].contains(part)), "{found:?}");
}

#[test]
fn a_table_of_nftables_that_appears_changes_and_goes() {
    with(test_name!(), async |mut host| {
        assert_eq!(host.look().await, [""; 0]);
        // As firewalld has it.
        let found = host
            .after(
                "nft 'add table inet firewalld'
                 nft 'add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }'
                 nft 'add chain inet firewalld filter_FORWARD_ZONES; add chain inet firewalld filter_FWD_public'
                 nft 'add rule inet firewalld filter_FORWARD ct state { established, related } accept'
                 nft 'add rule inet firewalld filter_FORWARD jump filter_FORWARD_ZONES'
                 nft 'add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited'
                 nft 'add rule inet firewalld filter_FORWARD_ZONES goto filter_FWD_public'
                 nft 'add rule inet firewalld filter_FWD_public reject with icmpx type admin-prohibited'",
            )
            .await;
        let rule = "by the rule `reject with icmpx admin-prohibited` of chain filter_FWD_public";
        assert_one(
            &found,
            "chain filter_FORWARD of table inet firewalld drops",
            &["IPv4", "IPv6", rule, "firewall-cmd"],
        );
        // An operator lets IPv4 through, in a chain that is no base chain.
        let found = host
            .after("nft insert rule inet firewalld filter_FWD_public ip saddr 10.244.0.0/16 accept; nft insert rule inet firewalld filter_FWD_public ip daddr 10.244.0.0/16 accept")
            .await;
        assert_one(&found, "chain filter_FORWARD", &["(IPv6 of pods"]);
        assert_eq!(host.after("nft delete table inet firewalld").await, [""; 0]);
    });
}

#[test]
fn a_change_that_concerns_nobody_is_no_reason_to_look() {
    with(test_name!(), async |mut host| {
        sh("nft 'add table ip nat; add chain ip nat c { type nat hook postrouting priority 100; }'");
        host.look().await;
        sh(
            "nft add rule ip nat c counter; nft 'add table inet x; add chain inet x y; add rule inet x y drop'",
        );
        assert!(timeout(Duration::from_secs(2), host.surroundings.changed()).await.is_err());
    });
}

#[test]
fn the_nft_variant_of_iptables_is_read_by_its_own_programs() {
    with(test_name!(), async |mut host| {
        host.look().await;
        // Only iptables-save can tell which states are meant.
        let docker = "iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            iptables-nft -N DOCKER-USER; iptables-nft -I FORWARD -j DOCKER-USER; iptables-nft -A FORWARD -i docker0 -j ACCEPT";
        let found = host.after(docker).await;
        let advice = "`iptables-nft -t filter -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT`";
        assert_one(&found, "chain FORWARD of table ip filter drops", &["IPv4", "by its policy", advice]);
        // Answers come back by the rule about states.
        assert_eq!(host.after("iptables-nft -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT").await, [""; 0]);
    });
}

#[test]
fn legacy_tables_of_which_nobody_tells() {
    with(test_name!(), async |mut host| {
        assert_eq!(host.look().await, [""; 0]);
        let found = host.after("iptables-legacy -w 5 -P FORWARD DROP").await;
        assert_one(&found, "chain FORWARD of table legacy ip filter drops", &["IPv4", "by its policy"]);
        let found = host
            .after("iptables-legacy -w 5 -P FORWARD ACCEPT; ip6tables-legacy -w 5 -A FORWARD -j REJECT")
            .await;
        assert_one(
            &found,
            "chain FORWARD of table legacy ip6 filter drops",
            &["IPv6", "by its rule `-j REJECT --reject-with icmp6-port-unreachable`"],
        );
        assert_eq!(host.after("ip6tables-legacy -w 5 -F FORWARD").await, [""; 0]);
    });
}
