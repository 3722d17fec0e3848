//! A machine with another kernel than this one's: Debian's, under qemu, on this host's own root file system.
//!
//! The kernel of the machine that tests run on may lack a module, or be so new that it hides what older ones do. A
//! [`Machine`] boots a kernel of Debian's archive, runs one command as root, and powers off. The command sees every
//! file of this host at the same path: programs, libraries, test binaries. What it writes goes to memory, but for the
//! shared folder `/out`. Nothing outside changes, and no network leads out.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use flannel_lab::vm::{Kernel, Machine};
//!
//! let kernel = Kernel::fetch("6.1", Path::new("target/vm")).unwrap();
//! let code = Machine::new(&kernel).run(&["uname", "-r"]).unwrap();
//! assert_eq!(code, 0);
//! ```
//!
//! The processor is emulated. That is several times slower than this host, so tests in there wait for events with the
//! patience that [`wait`](crate::wait) takes from the environment. `/dev/kvm` is used only where the caller says so: it
//! exists on machines that can't run these kernels with it.

mod archive;
mod initrd;
mod machine;

pub use self::archive::Kernel;
pub use self::machine::Machine;
