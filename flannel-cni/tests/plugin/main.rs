//! The plugin itself, with Debian's plugins as delegates and neighbours, on a real kernel.

mod chain;
mod faults;
mod host;
mod messages;
mod other_delegates;
mod takeover;
mod verbs;
