//! The control socket of an agent: what it knows, for the people and programs of its host.
//!
//! An agent serves a Unix socket beside its subnet file ([`socket_of`]). A client sends one request, a line of JSON, and
//! reads the answer, a line of JSON or a line for each thing that happens ([`protocol`]). [`ControlServer`] is the agent's
//! side, [`Client`] the other one, which needs no async runtime. [`wire`] has the answers as values, and [`screen`] makes
//! the text of `flanneld status` and `flanneld events` of them (pure), and [`show`] does both and writes to a terminal.
//!
//! Whoever may write to the socket sees leases, addresses and errors of this node, so only its owner and group may
//! (mode 0660). No request changes anything, unless the embedding program adds one that does
//! ([`ControlServer::request`]).
//!
//! For clients of the network there is an HTTP server for liveness and readiness, in the module `http`, and for
//! the log level of the running agent there is `log`, each with the feature of its name.

/// Compiles the code in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod client;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "log")]
pub mod log;
mod path;
pub mod protocol;
pub mod screen;
mod server;
mod shortage;
pub mod show;
pub mod wire;

pub use client::{AgentReport, Answers, Client, ClientError};
pub use flannel_core::agent::socket_of;
pub use server::{BindError, ControlServer};
