//! Prints the links of this network namespace with their addresses.

use std::error::Error;

use flannel_core::kernel::{Kernel, Link};
use flannel_core::netlink::Netlink;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut kernel = Netlink::open()?;
    let addresses = kernel.addresses().await?;
    for link in kernel.links().await? {
        let Link { index, name, kind, mac, mtu, up, .. } = &link;
        let kind = kind.as_deref().unwrap_or("-");
        let mac = mac.map_or("-".to_owned(), |mac| mac.to_string());
        println!("{index}: {name} {kind} {mac} mtu {mtu} {}", if *up { "up" } else { "down" });
        if let Some(vxlan) = &link.vxlan {
            println!("    vxlan {} port {} learning {}", vxlan.vni, vxlan.port, vxlan.learning);
        }
        for address in addresses.iter().filter(|address| address.link == *index) {
            println!("    {}", address.addr);
        }
    }
    Ok(())
}
