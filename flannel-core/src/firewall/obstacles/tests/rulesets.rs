//! Rule sets as firewalls really lay them.

use flannel_lab::test_name;

use super::*;

/// Who is cut: `o` what goes out to peers, `i` what comes in from them, `w` the world; or the answers to it.
#[test]
fn what_nftables_cuts() {
    const RULESETS: [(&str, &str, &[&str]); 9] = [
        (
            "firewalld, whose last rules reject",
            include_str!("rulesets/firewalld.json"),
            &["firewalld filter_FORWARD by rule of filter_FWD_public 4:oiw 6:oiw"],
        ),
        ("firewalld that trusts pods", include_str!("rulesets/firewalld-trusted.json"), &[]),
        (
            "a bare reject behind a jump, policy accept",
            include_str!("rulesets/final-reject.json"),
            &["filter forward by rule of last 4:oiw 6:oiw"],
        ),
        (
            "a server that forwards nothing",
            include_str!("rulesets/server.json"),
            &["filter forward by policy 4:oiw 6:oiw"],
        ),
        ("a server with rules that may be about pods", include_str!("rulesets/server-ports.json"), &[]),
        ("a server that guards itself", include_str!("rulesets/server-input-only.json"), &[]),
        (
            "one family",
            include_str!("rulesets/v6-dropped.json"),
            &["guard forwarded by rule of forwarded 6:oiw"],
        ),
        ("kube-proxy", include_str!("rulesets/kube-proxy.json"), &[]),
        (
            "one direction, and the world perhaps",
            include_str!("rulesets/one-way.json"),
            &["fw forward by rule of forward 4:i"],
        ),
    ];
    with_tables(test_name!(), async |host| {
        for (name, ruleset, want) in RULESETS {
            assert_eq!(said(&host.tables(ruleset).await), want, "{name}");
        }
    });
}

#[test]
fn what_iptables_cuts() {
    let policy = "filter FORWARD by policy 4:oiw";
    for (name, dump, want) in [
        ("ufw", include_str!("rulesets/ufw.v4.txt"), &[policy][..]),
        ("ufw with routes for pods", include_str!("rulesets/ufw-routes.v4.txt"), &[]),
        ("Docker", include_str!("rulesets/docker.v4.txt"), &[policy]),
        ("Docker whose user chain accepts pods", include_str!("rulesets/docker-user.v4.txt"), &[]),
        ("kube-proxy behind Docker's policy", include_str!("rulesets/kube-proxy.v4.txt"), &[policy]),
        ("with our rules", include_str!("rulesets/kube-proxy-flannel.v4.txt"), &[]),
        ("Calico, by marks", include_str!("rulesets/calico.v4.txt"), &[]),
        (
            "a last rule that rejects, policy accept",
            include_str!("rulesets/redhat.v4.txt"),
            &["filter FORWARD by rule of FORWARD 4:oiw"],
        ),
        (
            "our rules behind it",
            include_str!("rulesets/redhat-flannel-late.v4.txt"),
            &["filter FORWARD by rule of FORWARD 4:oiw"],
        ),
    ] {
        assert_eq!(said(&saved(dump)), want, "{name}");
    }
}

#[test]
fn an_operator_is_told_where_and_what_to_do() {
    with_tables(test_name!(), async |host| {
        let firewalld = host.tables(include_str!("rulesets/firewalld.json")).await;
        let server = host.tables(include_str!("rulesets/server.json")).await;
        is_told(&firewalld, &server);
    });
}

fn is_told(firewalld: &[Table], server: &[Table]) {
    let obstacle = |tables: &[Table], listing: &str| {
        let found = all_of(tables).remove(0);
        let advice = advice(&tables[0], &found, &ranges());
        let rule = found.cut.rule.as_ref().map(|rule| text_of(rule, listing));
        let Found { table: TableName { realm, family, name }, base, cut, cuts } = found;
        Obstacle { realm, family, table: name, chain: base, ends_in: cut.chain, rule, cuts, advice }
            .to_string()
    };
    let Some(RuleName::Handle(handle)) = all_of(firewalld).remove(0).cut.rule else {
        panic!("{firewalld:?}")
    };
    let text = obstacle(
        firewalld,
        &format!("chain x {{\n\t\treject with icmpx admin-prohibited # handle {handle}\n}}"),
    );
    assert_eq!(
        text,
        "chain filter_FORWARD of table inet firewalld drops forwarded packets (IPv4 of pods to other nodes, from \
         other nodes, to the world; IPv6 of pods to other nodes, from other nodes, to the world) by the rule \
         `reject with icmpx admin-prohibited` of chain filter_FWD_public, which no other table can undo; tell \
         firewalld that pods are trusted: `firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16`; \
         `firewall-cmd --permanent --zone=trusted --add-source=fd00:10:244::/56`, then `firewall-cmd --reload`"
    );
    for (dump, want) in [
        (
            include_str!("rulesets/ufw.v4.txt"),
            "by its policy, which no other table can undo; tell ufw to let pods through: `ufw route allow from 10.244.0.0/16`, `ufw route allow to 10.244.0.0/16`",
        ),
        (
            include_str!("rulesets/docker.v4.txt"),
            "`iptables-legacy -t filter -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT`",
        ),
        (
            include_str!("rulesets/redhat.v4.txt"),
            "by its rule `-j REJECT --reject-with icmp-host-prohibited`, which no other table can undo; accept pods there: `iptables-legacy -t filter -I FORWARD -s 10.244.0.0/16 -j ACCEPT`",
        ),
    ] {
        let text = obstacle(&saved(dump), "");
        assert!(
            text.starts_with("chain FORWARD of table legacy ip filter drops") && text.contains(want),
            "{text}"
        );
    }
    let server = obstacle(server, "");
    assert!(
        server.contains("`nft insert rule inet filter forward ip saddr 10.244.0.0/16 accept`"),
        "{server}"
    );
}
