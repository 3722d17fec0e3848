//! A crowd of nodes joins one etcd at the same time; prints how long it took and what it cost the server.
//!
//! ```sh
//! cargo run --release -p flannel-store-etcd --example join_storm -- 1000
//! ```

#[path = "../tests/etcd/common.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod common;
#[path = "../tests/etcd/storm.rs"]
mod storm;

#[tokio::main]
async fn main() {
    let nodes = std::env::args().nth(1).map_or(Ok(1000), |text| text.parse());
    let nodes: u16 = nodes.expect("the number of nodes, up to 9,999");
    for (name, config, attrs) in [
        ("IPv4", storm::STORM_V4, common::attrs as fn(u16) -> _),
        ("dual stack", storm::STORM_DUAL, common::dual_attrs),
    ] {
        let etcd = common::start(config);
        println!("{name}: {}", storm::storm(&etcd, nodes, attrs).await);
    }
}
