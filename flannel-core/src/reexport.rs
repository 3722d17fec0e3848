//! The crates whose types and macros are in signatures of this one, in the versions that fit: for a program that embeds
//! an agent, or brings a store or a backend, and has no other use for them.
//!
//! ```
//! use flannel_core::reexport::tokio::sync::watch;
//! use flannel_core::subnet::StoreStatus;
//!
//! let status: watch::Receiver<StoreStatus> = watch::Sender::new(StoreStatus::unknown()).subscribe();
//! assert!(!status.borrow().connected);
//! ```
//!
//! Of other crates there are single types: [`IpNetwork`](crate::addr::IpNetwork), and [`Rng`](crate::subnet::allocate::Rng).

pub use {async_trait, futures, serde, tokio, tokio_util};
