//! Rules over restarts, flushes, switches, and beside those of others.

use std::time::Duration;

use flannel_lab::agent::Agent;
use flannel_lab::bed;
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::sandbox::in_sandbox_within;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use super::packets::{Stream, Talk};
use super::{MANAGERS, Manager, World, sh};
use crate::backends::VXLAN;
use crate::harness::{FLANNELD, Folder, SOON, Store, WITHOUT_GATE, http_get, new_folder, subnet_file};

/// The rules of others are, byte for byte, what they were, whatever we do to ours.
#[test]
fn rules_of_others_stay_byte_for_byte() {
    in_sandbox_within(Duration::from_mins(4), test_name!(), || {
        for manager in MANAGERS {
            let mut world = World::new(&VXLAN, manager, &["--ip-masq"]);
            let theirs = |rules: &str| {
                let mut lines: Vec<_> = rules.lines().map(str::to_owned).collect();
                let mut ours = false;
                lines.retain(|line| {
                    ours |= line.starts_with("table ip flannel-ipv4")
                        || line.starts_with("table ip6 flannel-ipv6");
                    let keep = !ours && !line.contains("FLANNEL") && !line.contains("flanneld");
                    ours &= line != "}";
                    keep
                });
                lines.join("\n")
            };
            // Rules that come after ours, and one among them.
            for (program, chain) in manager.iptables().into_iter().zip(["POSTROUTING"; 2]) {
                sh(
                    world.node(1),
                    &format!("{program} -w 5 -t nat -A {chain} -m comment --comment after -j RETURN"),
                );
                if manager != Manager::Nftables {
                    sh(
                        world.node(1),
                        &format!("{program} -w 5 -t nat -I FLANNEL-POSTRTG 3 -m comment --comment between"),
                    );
                }
            }
            let all = manager.rules(world.node(1));
            world.bed.stop(1);
            world.bed.spawn(1, &["--ip-masq"]);
            world.bed.wait_ready(1);
            assert_eq!(
                manager.rules(world.node(1)),
                all,
                "{manager:?}: a start that finds all as it should be"
            );
            world.bed.stop(1);
            world.bed.spawn(1, &["--iptables-forward-rules=false"]);
            world.bed.wait_ready(1);
            let between = |rules: &str| rules.lines().filter(|line| line.contains("between")).count();
            eventually(SOON, "our rules to be gone", || {
                let left = manager.rules(world.node(1));
                let gone = !left.contains("10.244.") && !left.contains("fd00:10:244");
                // One of theirs is in our chain, so that has to stay, but with nothing of ours.
                let right = gone && theirs(&left) == theirs(&all) && between(&left) == between(&all);
                if right { Ok(()) } else { Err(format!("{manager:?}\n{left}\ninstead of\n{all}")) }
            });
        }
    });
}

/// All of a host's rules are flushed while pods speak to the world.
#[test]
fn flushed_rules_come_back_under_traffic() {
    in_sandbox_within(Duration::from_mins(4), test_name!(), || {
        for manager in MANAGERS {
            let world = World::new(&VXLAN, manager, &["--ip-masq", "--iptables-resync=1"]);
            let stream =
                Stream::start(world.pods[0].netns(), world.bed.cluster.fabric(), world.outside(false));
            stream.wait_for(20);
            let before = manager.rules(world.node(1));
            let flush = match manager {
                Manager::Nftables => "nft flush ruleset".to_owned(),
                // As a firewall that starts anew: all rules of all, then its own.
                _ => manager
                    .iptables()
                    .map(|it| {
                        format!("{it} -w 5 -t nat -F; {it} -w 5 -t nat -X; {it} -w 5 -F; {it} -w 5 -X;")
                    })
                    .concat(),
            };
            for round in 1..=3 {
                sh(world.node(1), &flush);
                eventually(SOON, "the rules to be back", || {
                    let log = world.bed.agent(1).log();
                    if log.matches("firewall rules repaired").count() == round { Ok(()) } else { Err(log) }
                });
                let ours = |rules: String| rules.lines().filter(|line| line.contains("10.244")).count();
                assert_eq!(ours(manager.rules(world.node(1))), ours(before.clone()));
            }
            let heard = stream.stop();
            let node = world.underlay(1, false);
            println!(
                "{manager:?}: {} packets as they should be, {} with the address of the pod while the rules were away; {}",
                heard.iter().filter(|source| **source == node).count(),
                heard.iter().filter(|source| **source != node).count(),
                world
                    .bed
                    .agent(1)
                    .log()
                    .lines()
                    .filter(|line| line.contains("repaired"))
                    .collect::<Vec<_>>()
                    .join("; "),
            );
            assert_eq!(heard.last(), Some(&node));
        }
    });
}

/// New connections all the while, and old ones that go on.
#[test]
fn a_restart_is_invisible_to_traffic_to_the_world() {
    in_sandbox_within(Duration::from_mins(4), test_name!(), || {
        for manager in MANAGERS {
            let mut world = World::new(&VXLAN, manager, &["--ip-masq"]);
            let (pod, fabric) = (world.pods[0].netns().clone(), world.bed.cluster.fabric().clone());
            let streams = [false, true].map(|v6| Stream::start(&pod, &fabric, world.outside(v6)));
            let talk = [false, true].map(|v6| Talk::start(&pod, &fabric, world.outside(v6)));
            for round in 0..4 {
                if round % 2 == 0 {
                    world.bed.stop(1);
                } else {
                    world.bed.kill(1);
                }
                for stream in &streams {
                    stream.wait_for(50);
                }
                world.bed.spawn(1, &["--ip-masq"]);
                world.bed.wait_ready(1);
                for stream in &streams {
                    stream.wait_for(50);
                }
            }
            for (stream, v6) in streams.into_iter().zip([false, true]) {
                let sent = stream.sent();
                let heard = stream.stop();
                assert!(heard.len() as u64 >= sent, "{manager:?}: {sent} sent, {} heard", heard.len());
                assert!(heard.iter().all(|source| *source == world.underlay(1, v6)), "{manager:?} {v6}");
            }
            talk.into_iter().for_each(Talk::finish);
        }
    });
}

/// From one manager to the other, and to none: nothing stays of the one before.
#[test]
fn switching_leaves_no_residue() {
    in_sandbox_within(Duration::from_mins(4), test_name!(), || {
        let mut world = World::new(&VXLAN, Manager::Nftables, &["--ip-masq"]);
        let dump = |world: &World| {
            let programs =
                ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"];
            let dumps = programs.map(|program| sh(world.node(1), program));
            dumps.concat() + &sh(world.node(1), &format!("nft list ruleset | {WITHOUT_GATE}"))
        };
        let stream = Stream::start(world.pods[0].netns(), world.bed.cluster.fabric(), world.outside(false));
        for (manager, flags, want) in [
            (Manager::IptablesNft, &["--ip-masq"][..], [false, true]),
            (Manager::Nftables, &["--ip-masq"], [true, false]),
            (Manager::IptablesNft, &["--ip-masq", "--iptables-forward-rules=false"], [false, true]),
        ] {
            stream.wait_for(20);
            world.bed.stop(1);
            world.bed.store.put_config(&manager.config(world.bed.case)).unwrap();
            world.bed.spawn(1, flags);
            world.bed.wait_ready(1);
            eventually(SOON, "the other's rules to be gone", || {
                let all = dump(&world);
                let has = [all.contains("table ip flannel-ipv4"), all.contains("FLANNEL-POSTRTG")];
                let forward = all.contains("FLANNEL-FWD");
                let right = has == want && (forward == (want[1] && flags.len() == 1));
                if right { Ok(()) } else { Err(format!("{manager:?} {flags:?}: {all}")) }
            });
        }
        stream.wait_for(20);
        let heard = stream.stop();
        let node = world.underlay(1, false);
        assert!(heard.iter().all(|source| *source == node), "none left with the address of its pod");
        world.bed.stop(1);
        world.bed.spawn(1, &["--iptables-forward-rules=false"]);
        world.bed.wait_ready(1);
        eventually(SOON, "all our rules to be gone", || {
            let all = dump(&world).to_lowercase();
            if all.contains("flannel") { Err(all) } else { Ok(()) }
        });
    });
}

/// nftables takes no program. Where iptables was asked for, masquerading that was asked for must not be missed in silence; the
/// default must not hinder anybody.
#[test]
fn a_host_without_the_programs() {
    in_sandbox_within(Duration::from_mins(1), test_name!(), || {
        const PACKAGE: &str = "is not installed (Debian and Red Hat package iptables)";
        let cluster = Cluster::builder().nodes(1).families(Families::Dual).build().unwrap();
        let store = new_folder();
        let flanneld = |more: &[&str]| {
            let agent = bed::flanneld(cluster.node(1), &[FLANNELD], &store, &subnet_file(1));
            agent.env("PATH", "/nowhere").arg("--iface=eth0").args(more)
        };
        let is_ready = |agent: &Agent, says: &str| {
            eventually(SOON, "an agent that is ready", || {
                let said = http_get(cluster.node(1).netns(), 8471, "/readyz");
                let right = said.contains("200 OK") && said.contains(says);
                if right { Ok(()) } else { Err(format!("{said}\n{}", agent.log())) }
            });
        };
        store.put_config(&Manager::IptablesNft.config(&VXLAN)).unwrap();
        for asked in ["--ip-masq", "--iptables-forward-rules"] {
            let agent = flanneld(&[asked]).start().unwrap();
            let status = agent.wait(SOON).unwrap();
            assert_eq!(status.code(), Some(1), "{}", agent.log());
            let log = agent.log();
            assert!(log.contains(asked) && log.contains(PACKAGE), "{log}");
            assert!(store.records().unwrap().is_empty(), "nothing was touched before");
        }
        let agent = flanneld(&[]).start().unwrap();
        is_ready(&agent, PACKAGE);
        agent.terminate().unwrap();
        for (config, why) in [
            (VXLAN.config(Families::Dual), "iptables is not installed"),
            (Manager::Nftables.config(&VXLAN), "EnableNFTables is true"),
        ] {
            store.put_config(&config).unwrap();
            let agent = flanneld(&["--ip-masq"]).start().unwrap();
            is_ready(&agent, "");
            assert!(agent.log().contains(&format!("nftables; {why}")), "{}", agent.log());
            let rules = sh(cluster.node(1).netns(), "nft list ruleset; nft flush ruleset");
            assert!(rules.contains("masquerade") && rules.contains("chain forward"), "{rules}");
            agent.terminate().unwrap();
        }
    });
}

/// Two agents of one host, each with a network of its own, share the chains and leave each other's rules alone.
#[test]
fn two_agents_of_one_host() {
    in_sandbox_within(Duration::from_mins(2), test_name!(), || {
        for manager in MANAGERS {
            let mut world = World::new(&VXLAN, manager, &["--ip-masq", "--iptables-resync=1"]);
            let alone = manager.rules(world.node(1));
            let store = Folder::new("/run/other-store").unwrap();
            let nftables = manager == Manager::Nftables;
            store.put_config(&format!(
                r#"{{"EnableNFTables":{nftables},"Network":"10.99.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:99::/56","Backend":{{"Type":"vxlan","VNI":9,"Port":8479}}}}"#
            )).unwrap();
            let other = |more: &[&str]| {
                let agent = world.bed.cluster.node(1).agent("other", FLANNELD).arg("--iface=eth0").args(more);
                let agent = agent.args(["--subnet-file=/run/other.env", "--healthz-port=8472", "-v=1"]);
                agent.arg("--iptables-resync=1").args(store.flags()).start().unwrap()
            };
            let agent = other(&["--ip-masq"]);
            eventually(SOON, "the other to be ready", || {
                let said = http_get(world.node(1), 8472, "/readyz");
                if said.contains("200 OK") { Ok(()) } else { Err(said) }
            });
            let both = manager.rules(world.node(1));
            assert!(both.contains("10.99.") && both.contains("10.244."), "{both}");
            // Long enough for several looks at each other's rules.
            std::thread::sleep(Duration::from_secs(4));
            assert_eq!(manager.rules(world.node(1)), both);
            for log in [agent.log(), world.bed.agent(1).log()] {
                assert!(!log.contains("firewall rules repaired"), "{manager:?}: {log}");
            }
            agent.terminate().unwrap();
            let agent = other(&["--iptables-forward-rules=false"]);
            eventually(SOON, "the other's rules to be gone", || {
                let rules = manager.rules(world.node(1));
                // The rule about marks is both's, and put back by who still wants it.
                let count = |text: &str| {
                    text.lines().filter(|line| line.contains("4000/0x") || line.contains("00004000")).count()
                };
                let right = !rules.contains("10.99.") && count(&rules) == count(&alone);
                if right { Ok(()) } else { Err(rules) }
            });
            agent.terminate().unwrap();
            world.bed.stop(1);
        }
    });
}

/// What was written for a network that the node had before is known by either file.
#[test]
fn rules_of_the_network_before_go() {
    in_sandbox_within(Duration::from_mins(2), test_name!(), || {
        for manager in MANAGERS {
            let mut world = World::new(&VXLAN, manager, &["--ip-masq"]);
            let (subnets, state) = (subnet_file(1), subnet_file(1).with_extension("env.state"));
            for (lost, old, new) in [(state, "244", "245"), (subnets, "245", "246")] {
                eventually(SOON, "both files", state_and_subnets_are_there);
                world.bed.stop(1);
                std::fs::remove_file(&lost).unwrap();
                let config = manager.config(world.bed.case);
                let config =
                    config.replace("10.244.", &format!("10.{new}.")).replace("10:244", &format!("10:{new}"));
                world.bed.store.put_config(&config).unwrap();
                world.bed.spawn(1, &["--ip-masq"]);
                world.bed.wait_ready(1);
                let rules = manager.rules(world.node(1));
                let has = |network: &str| {
                    rules.contains(&format!("10.{network}.")) || rules.contains(&format!("fd00:10:{network}"))
                };
                assert!(has(new) && !has(old), "{manager:?} without {}: {rules}", lost.display());
            }
        }
    });
}

fn state_and_subnets_are_there() -> bool {
    subnet_file(1).exists() && subnet_file(1).with_extension("env.state").exists()
}
