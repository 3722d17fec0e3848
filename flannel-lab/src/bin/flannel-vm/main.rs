//! Runs a command under another kernel: `cargo vm 6.1 COMMAND...`.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use flannel_lab::error::chain;
use flannel_lab::vm::{Kernel, Machine};

/// Names what carries out a machine's instructions, for qemu's `-accel`.
const ACCELERATOR: &str = "FLANNEL_VM_ACCEL";
/// How much longer tests wait for an event in an emulated machine than on this one.
const PATIENCE: &str = "10";

/// Runs a command as root under a kernel of Debian's, in a virtual machine with this host's files.
///
/// The kernel's package is downloaded at the first use, and unpacked into the target folder. The command sees all
/// files of this host and starts in the current folder; what it writes goes to memory, but for /out. Its output goes
/// to stdout, and its exit code is this program's. The machine is emulated, so that it runs anywhere;
/// `FLANNEL_VM_ACCEL=kvm` makes it use /dev/kvm.
#[derive(Debug, Parser)]
#[command(name = "flannel-vm", version)]
struct Options {
    /// End the machine, and fail, after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    deadline: u64,
    /// How many processors it has
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    processors: u32,
    /// How much memory it has, files that are written included
    #[arg(long, value_name = "MIB", default_value_t = 2000)]
    memory: u32,
    /// The folder that is /out in the machine, to take files out of it
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// The kernel's series, such as 6.1 or 6.12
    kernel: String,
    /// The command and its arguments; a shell without
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    run(&Options::parse()).unwrap_or_else(|error| {
        eprintln!("FAILED: {}", chain(&*error));
        ExitCode::FAILURE
    })
}

fn run(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    let exe = env::current_exe()?;
    let target = exe.ancestors().nth(2).unwrap_or(Path::new("."));
    let kernel = Kernel::fetch(&options.kernel, &target.join("vm"))?;
    let mut machine = Machine::new(&kernel)
        .processors(options.processors)
        .memory(options.memory)
        .deadline(Duration::from_secs(options.deadline))
        .variable("FLANNEL_LAB_PATIENCE", PATIENCE);
    if let Ok(accelerator) = env::var(ACCELERATOR) {
        machine = machine.accelerator(&accelerator);
    }
    if let Some(out) = &options.out {
        machine = machine.out(out);
    }
    Ok(ExitCode::from(machine.run(&options.command)?))
}
