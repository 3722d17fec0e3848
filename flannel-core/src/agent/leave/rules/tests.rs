//! Rules in a real kernel that go, although it is not as it was.

use std::process::Command;

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

use super::*;
use crate::addr::PerFamily;
use crate::firewall::rules::Range;

/// Between the plan and the removal an operator may take his time, and others change rules.
#[test]
fn rules_go_although_others_changed_theirs_since() {
    in_sandbox(test_name!(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let netns = Netns::current().unwrap();
            let range = Range::new("10.1.0.0/16".parse().unwrap(), "10.1.7.0/24".parse().unwrap());
            let ranges = PerFamily { v4: Some(range), v6: None };
            let ours = Ours::Of(vec![ranges]);
            let mut nftables = Nftables::open(&netns);
            converge(Some(&mut nftables), &Wanted::of(ranges).masquerading(true), &ours).await.unwrap();
            let steps = steps_of(Ok(nftables), &ours).await.unwrap();
            let nft = |words: &str| Command::new("nft").args(words.split(' ')).output().unwrap();
            assert!(nft("add table inet theirs").status.success());
            for step in &steps {
                remove(&netns, step, &ours).await.unwrap();
            }
            assert_eq!(String::from_utf8(nft("list tables").stdout).unwrap(), "table inet theirs\n");
        });
    });
}
