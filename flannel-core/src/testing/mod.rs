//! Fakes and generators for tests of backends and agents. Feature `testing`.

mod kernel;
mod strategies;

pub use kernel::FakeKernel;
pub use strategies::{dataplane, object};
