//! Tests on bytes, and tests against the kernel in namespaces of their own.

mod bytes;
mod changes;
mod forwarding;
mod kernel;
mod kinds;
mod locked_mtu;
mod next_hops;
mod sandbox;
mod shared;
mod storms;
