//! Shows what would be done so that pods of a node reach the world: `cargo run --example firewall -- 10.244.0.0/16 10.244.7.0/24`.
//!
//! Nothing is changed; needs root to look.

use std::error::Error;
use std::time::Duration;

use flannel_core::addr::{Family, PerFamily, Subnet};
use flannel_core::firewall::RuleManager;
use flannel_core::firewall::iptables::Iptables;
use flannel_core::firewall::nft::Nftables;
use flannel_core::firewall::rules::{Ours, Range, Wanted};
use flannel_core::netns::Netns;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let network: Subnet = args.next().as_deref().unwrap_or("10.244.0.0/16").parse()?;
    let subnet: Subnet = args.next().as_deref().unwrap_or("10.244.7.0/24").parse()?;
    let family: Family = network.family();
    let range = Some(Range::new(network, subnet)).filter(|_| network.covers(subnet));
    let ranges = PerFamily::from_fn(|other| range.filter(|_| other == family));
    let wanted = Wanted::of(ranges).masquerading(true).forwarding();

    let netns = Netns::current()?;
    let mut managers: Vec<Box<dyn RuleManager>> = vec![Box::new(Nftables::open(&netns))];
    match Iptables::open(&netns, &[family], Duration::from_secs(5)).await {
        Ok(iptables) => managers.push(Box::new(iptables)),
        Err(error) => println!("iptables: {error}"),
    }
    for mut manager in managers {
        let plan = manager.plan(&wanted, &Ours::Of(vec![ranges])).await?;
        println!("{}:", manager.name());
        for command in plan.steps.iter().flat_map(|step| &step.commands) {
            println!("  {command}");
        }
        for note in plan.notes {
            println!("  note: {note}");
        }
    }
    Ok(())
}
