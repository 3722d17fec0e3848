//! Whether the devices complete checksums.

use super::*;
use crate::tunnel::TxChecksum;

const NAMES: [&str; 2] = ["flannel.1", "flannel-v6.1"];

/// What each device does with checksums.
fn offloads(host: &Host) -> [bool; 2] {
    NAMES.map(|name| host.kernel.checksum_offload(name).unwrap())
}

/// Registers with what is held of checksums, and runs. Returns what is there to probe, too.
async fn start(host: &Host, held: TxChecksum) -> (Running, flannel_core::backend::Probing) {
    let kernel = host.kernel.clone();
    let backend = VxlanBackend::with_kernel(move |_| Ok(Box::new(kernel.clone()))).tx_checksum(held);
    let netns = Netns::current().unwrap();
    let network =
        backend.register(Registration::new(&netns, &host.config, &host.underlay, &host.store)).await.unwrap();
    let (probing, status) = (network.probing().unwrap(), network.status());
    let cancel = CancellationToken::new();
    let task = tokio::spawn(network.run(host.store.watch_leases(), cancel.clone()));
    settle().await;
    (Running { status, cancel, task }, probing)
}

fn shown(running: &Running) -> Vec<Option<bool>> {
    running.status.borrow().devices.iter().map(|device| device.tx_checksum).collect()
}

#[tokio::test(start_paused = true)]
async fn devices_are_left_as_they_are_unless_something_else_was_asked_for() {
    let host = Host::new(true, DUAL);
    let (running, probing) = start(&host, TxChecksum::Keep).await;
    assert_eq!((offloads(&host), shown(&running)), ([true; 2], vec![None; 2]));
    assert!(probing.checksums.is_none() && probing.tunnel.unwrap().port(Family::V4) == 8472);
    host.kernel.set_checksum_offload("flannel.1", false);
    resync().await;
    assert_eq!(offloads(&host), [false, true], "whoever did that may");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn off_is_held_on_every_device() {
    let host = Host::new(true, DUAL);
    let (running, _) = start(&host, TxChecksum::Off).await;
    assert_eq!((offloads(&host), shown(&running)), ([false; 2], vec![Some(false); 2]));
    for name in NAMES {
        host.kernel.set_checksum_offload(name, true);
    }
    settle().await;
    assert_eq!(offloads(&host), [false; 2], "the notification was enough");
    host.kernel.delete_link("flannel.1");
    settle().await;
    assert_eq!((offloads(&host), shown(&running)), ([false; 2], vec![Some(false); 2]));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn auto_waits_for_the_proof_and_acts_on_it_at_once() {
    let host = Host::new(true, DUAL);
    let (running, probing) = start(&host, TxChecksum::Auto).await;
    resync().await;
    assert_eq!((offloads(&host), shown(&running)), ([true; 2], vec![None; 2]));
    probing.checksums.unwrap().turn_off("UDP is lost");
    settle().await;
    assert_eq!((offloads(&host), shown(&running)), ([false; 2], vec![Some(false); 2]));
    running.stop().await;
}
