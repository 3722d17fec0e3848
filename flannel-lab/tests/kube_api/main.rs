//! The API server of the lab: what the real one says to the same questions, and its faults.

mod client;
mod plain;
