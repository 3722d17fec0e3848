//! What the kernel can do, found out by doing it, in a network namespace that is there for that alone: no device, rule or
//! packet of a trial is ever seen by anybody else. The kernel may load modules for it, as it would for an agent.

mod features;
mod offload;

use std::io;
use std::thread;

use async_trait::async_trait;
use flannel_core::netns::Netns;
use nix::sched::{CloneFlags, unshare};

/// Something that the kernel can do or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trial {
    /// Make a VXLAN device.
    Vxlan,
    /// Make a TUN device.
    Tun,
    /// Make an IPIP device.
    Ipip,
    /// Make a `WireGuard` device.
    Wireguard,
    /// Keep a rule set in `nf_tables`.
    NfTables,
    /// Keep routes through next-hop objects.
    NextHops,
    /// Complete the checksum of a masqueraded UDP datagram in a VXLAN tunnel, for a link that can't.
    Checksums,
}

/// How a trial went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// It works; what was seen.
    Works(String),
    /// It does not work; what was tried, and what the kernel said.
    Fails(String),
    /// It could not be tried; why not.
    Untried(String),
}

/// Makes trials. [`RealTrials`] asks the real kernel.
#[async_trait]
pub trait Trials: Send + Sync {
    /// Tries one thing.
    async fn tried(&self, what: Trial) -> Tried;
}

/// Trials of the kernel that this process runs on. They need `CAP_SYS_ADMIN`, for the namespace, and `CAP_NET_ADMIN`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealTrials;

#[async_trait]
impl Trials for RealTrials {
    async fn tried(&self, what: Trial) -> Tried {
        let scratch = match scratch() {
            Ok(scratch) => scratch,
            Err(error) => {
                return Tried::Untried(format!(
                    "no network namespace can be made for a trial, which takes CAP_SYS_ADMIN: {error}"
                ));
            }
        };
        match what {
            Trial::Vxlan => features::vxlan(&scratch).await,
            Trial::Tun => features::tun(&scratch),
            Trial::Ipip => features::ipip(&scratch).await,
            Trial::Wireguard => features::wireguard(&scratch).await,
            Trial::NfTables => features::nf_tables(&scratch).await,
            Trial::NextHops => features::next_hops(&scratch).await,
            Trial::Checksums => offload::checksums(&scratch).await,
        }
    }
}

/// A new network namespace, which ends with the value.
fn scratch() -> io::Result<Netns> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(Netns::current()?)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("trial".to_owned()).spawn_scoped(scope, make)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread for it failed")))
    })
}
