//! Command lines in the syntax of Go's `flag` package, read by clap.
//!
//! A [`Program`] is a [`clap::Command`] ([`as_in_go`] gives its flags Go's meaning) with what clap has no word for: what
//! variables begin with, which flags may hold a password, and how words before the flags are read. [`Program::read`] turns
//! arguments and environment into what clap reads, and words what clap finds: clap's own messages have values in them, which
//! may be passwords. [`value`] has parsers for values, and [`Program::unread`] finds misspelt variables.
//!
//! The library reads no environment itself: the caller gives a function.

mod command;
mod error;
mod explain;
mod given;
mod go;
mod program;
mod read;
mod shown;
mod unread;
pub mod value;

pub use command::as_in_go;
pub use error::UsageError;
pub use given::{Flag, Given};
pub use program::{Program, Words};
pub use read::{Line, Read};
pub use unread::Unread;

/// The crate whose types are in signatures of this one.
pub use clap;

/// Compiles the code in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
