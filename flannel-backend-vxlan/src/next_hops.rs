//! Decides whether routes go through next-hop objects, by the operator's option and by what the kernel has.
//!
//! Each further plain route through a device takes longer to insert, since the kernel compares it with all others
//! without regard to their gateways. Routes through next-hop objects all cost the same.

use std::fmt;

use flannel_core::addr::{LinkIndex, Subnet};
use flannel_core::dataplane::{NextHop, Object, Op, Through};
use flannel_core::kernel::{Kernel, KernelError, Kinds, Scope};
use tracing::debug;

/// Whether routes of peers go through next-hop objects (`ip nexthop`). A restart with the other value changes all
/// routes in place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NextHopObjects {
    /// If the kernel has them (Linux 5.3), which is tested.
    #[default]
    Auto,
    /// Never: for tools that do not know such routes, or before an agent takes over that does not.
    Off,
}

/// How routes are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Form {
    Objects,
    /// Plain routes, with the reason.
    Plain(String),
}

impl Form {
    pub(crate) fn through(&self) -> Through {
        match self {
            Self::Objects => Through::Object,
            Self::Plain(_) => Through::Itself,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Objects => f.write_str("routes through next-hop objects"),
            Self::Plain(why) => write!(f, "plain routes ({why})"),
        }
    }
}

/// Tests the kernel on our devices, each with its overlay network.
pub(crate) async fn find_form(
    kernel: &mut dyn Kernel,
    wanted: NextHopObjects,
    devices: Vec<(LinkIndex, Subnet)>,
) -> Result<Form, KernelError> {
    let mut form = Form::Objects;
    if wanted == NextHopObjects::Off {
        form = Form::Plain("next-hop objects are switched off".to_owned());
    }
    for (link, network) in devices {
        if form == Form::Objects
            && let Attempt::Refused(why) = attempt(kernel, link, network).await?
        {
            form = Form::Plain(format!("the kernel has no next-hop objects: {why}"));
        }
    }
    Ok(form)
}

/// The result of the test for next-hop objects.
enum Attempt {
    Accepted,
    /// Why not.
    Refused(String),
}

/// Tests for next-hop objects: if there are objects of an earlier run, the kernel has them; else one is created, read
/// and deleted. Its gateway is the last address of the network, which no peer has, and no route goes through it.
async fn attempt(kernel: &mut dyn Kernel, link: LinkIndex, network: Subnet) -> Result<Attempt, KernelError> {
    let scope = Scope { link, family: network.family(), kinds: Kinds::NEXT_HOPS };
    if !kernel.objects(scope).await?.is_empty() {
        return Ok(Attempt::Accepted);
    }
    let object = Object::NextHop(NextHop { link, gateway: network.last(), spare: None });
    if let Some(refusal) = kernel.execute(&[Op::Create(object)]).await?.first() {
        if matches!(refusal.errno, libc::ENODEV | libc::ENETDOWN) {
            // That says nothing about the kernel: the device was removed or set down.
            return Err(KernelError::Lost { what: "try a next-hop object".to_owned() });
        }
        return Ok(Attempt::Refused(refusal.to_string()));
    }
    let is_there = kernel.objects(scope).await?.contains(&object);
    for refusal in kernel.execute(&[Op::Delete(object)]).await? {
        debug!(error = %refusal, "the next-hop object of the trial stays until leftovers are removed");
    }
    let family = network.family();
    Ok(if is_there {
        Attempt::Accepted
    } else {
        Attempt::Refused(format!("one that was created for {family} can't be read back"))
    })
}
