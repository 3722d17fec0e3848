//! The kind of a virtual link with its attributes, in the kernel's own terms. Pure.
//!
//! # How a backend brings its own kind of device
//! Core needs to know nothing of the kind but its name. A backend
//! 1. describes the device that it wants: a [`LinkKind`] with attributes from the kernel's header for that kind;
//! 2. creates it by [`LinkOp::Create`](super::LinkOp), and changes it in place, where the kernel allows that, by
//!    [`LinkOp::Change`](super::LinkOp);
//! 3. reads the present device by [`Kernel::link_kind`](super::Kernel::link_kind) and compares it:
//!    [`LinkKind::first_difference`] returns the first attribute that differs.
//!
//! The backend does all of that in `Driver::ensure_devices`, which the loop calls whenever a link may have changed.
//!
//! ```
//! use flannel_core::kernel::{LinkAttr, LinkKind};
//!
//! /// `IFLA_BR_AGEING_TIME` of `linux/if_link.h`.
//! const AGEING_TIME: u16 = 4;
//! let wanted = LinkKind::new("bridge", [LinkAttr::new(AGEING_TIME, 30_000_u32.to_ne_bytes())]);
//! let found = LinkKind::new("bridge", [LinkAttr::new(1, [0; 4]), LinkAttr::new(AGEING_TIME, 100_u32.to_ne_bytes())]);
//! assert_eq!(wanted.first_difference(&found), Some(&wanted.attrs[0]));
//! ```

/// The kind of a virtual link (`IFLA_INFO_KIND`) with attributes of that kind (`IFLA_INFO_DATA`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkKind {
    /// The kernel's name of the kind, such as `vxlan`, `wireguard` or `ipip`.
    pub name: String,
    /// Its attributes, in the order in which they are sent or were read.
    pub attrs: Vec<LinkAttr>,
}

/// One attribute of a kind of link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkAttr {
    /// Its number in the kernel's header, without flag bits.
    pub number: u16,
    /// Its payload as it is sent, without padding: numbers in the byte order that the header demands; empty for a flag.
    pub value: Vec<u8>,
}

impl LinkAttr {
    /// An attribute with this payload.
    pub fn new(number: u16, value: impl Into<Vec<u8>>) -> Self {
        Self { number, value: value.into() }
    }
}

impl LinkKind {
    /// A kind with these attributes.
    pub fn new(name: impl Into<String>, attrs: impl IntoIterator<Item = LinkAttr>) -> Self {
        Self { name: name.into(), attrs: attrs.into_iter().collect() }
    }

    /// The payload of an attribute.
    pub fn get(&self, number: u16) -> Option<&[u8]> {
        self.attrs.iter().find(|attr| attr.number == number).map(|attr| attr.value.as_slice())
    }

    /// The first attribute that `found` lacks or has with another value. Further attributes of `found` do not matter,
    /// since the kernel reports all attributes of a link, even those that nobody set. If `found` is of another kind,
    /// all differ.
    pub fn first_difference<'a>(&'a self, found: &Self) -> Option<&'a LinkAttr> {
        let is_other = self.name != found.name;
        self.attrs.iter().find(|attr| is_other || found.get(attr.number) != Some(&attr.value))
    }

    /// Replaces the attributes that `changes` names, as the kernel does when a link is changed.
    pub fn merge(&mut self, changes: &Self) {
        for change in &changes.attrs {
            match self.attrs.iter_mut().find(|attr| attr.number == change.number) {
                Some(attr) => attr.value.clone_from(&change.value),
                None => self.attrs.push(change.clone()),
            }
        }
    }
}
