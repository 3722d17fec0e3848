//! Hosts that lack programs.

use std::path::Path;
use std::time::Duration;

use flannel_lab::test_name;
use nix::mount::{MsFlags, mount};

use super::super::Iptables;
use super::host::{ours, reconcile, with};
use super::*;
use crate::addr::Family;
use crate::netns::Netns;

/// Makes a host whose iptables has only these names, all of one variant.
fn have_only(names: &[&str], program: &str) {
    let real = ["/usr/sbin", "/sbin"].map(Path::new).into_iter().find(|folder| folder.join(program).exists());
    let folder = Path::new("/run/sbin");
    std::fs::create_dir(folder).unwrap();
    std::fs::copy(real.unwrap().join(program), folder.join(program)).unwrap();
    for name in names {
        std::os::unix::fs::symlink(program, folder.join(name)).unwrap();
    }
    for hidden in ["/usr/sbin", "/sbin"] {
        mount(Some(folder), hidden, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    }
}

const PLAIN: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];

#[test]
fn plain_names_will_do() {
    with(test_name!(), async || {
        have_only(&PLAIN, "xtables-legacy-multi");
        Iptables::installed(&Netns::current().unwrap(), &Family::ALL).await.unwrap();
        let mut manager =
            Iptables::open(&Netns::current().unwrap(), &Family::ALL, Duration::from_secs(5)).await.unwrap();
        assert!(manager.choice().contains("(legacy)"), "{}", manager.choice());
        let plan = reconcile(&mut manager, &all_of(golden_ranges()), &ours()).await;
        let programs: Vec<_> = plan.steps.iter().map(program).collect();
        assert_eq!(programs, ["iptables-restore", "ip6tables-restore"]);
    });
}

#[test]
fn a_missing_program_is_named_if_a_family_needs_it() {
    with(test_name!(), async || {
        have_only(&PLAIN[..3], "xtables-nft-multi");
        Iptables::installed(&Netns::current().unwrap(), &[Family::V4]).await.unwrap();
        let error = Iptables::installed(&Netns::current().unwrap(), &Family::ALL).await.unwrap_err();
        assert!(error.to_string().starts_with("ip6tables-save is not installed"), "{error}");
        let mut manager =
            Iptables::open(&Netns::current().unwrap(), &[Family::V4], Duration::from_secs(5)).await.unwrap();
        let v4 = PerFamily { v6: None, ..golden_ranges() };
        reconcile(&mut manager, &all_of(v4), &ours()).await;
        for name in PLAIN {
            _ = std::fs::remove_file(Path::new("/run/sbin").join(name));
        }
        let error =
            Iptables::open(&Netns::current().unwrap(), &[], Duration::from_secs(5)).await.unwrap_err();
        let told = "iptables-save is not installed (Debian and Red Hat package iptables)";
        assert_eq!(error.to_string(), told);
    });
}
