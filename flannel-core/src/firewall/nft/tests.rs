//! Listings as text, and rules in the real kernel.

mod kernel;
mod listings;
