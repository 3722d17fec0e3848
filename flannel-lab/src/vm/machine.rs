//! One boot of a kernel, for one command.

use std::ffi::OsStr;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Kernel, initrd};
use crate::{LabError, exec, sandbox};

/// What the machine runs once the host's root file system is there.
const INIT: &str = include_str!("second.sh");

/// How often is looked whether the machine has ended.
const POLL: Duration = Duration::from_millis(20);

/// The processor: all that qemu emulates, but for what makes the kernel choose ways that are fast on real processors alone. With `erms`
/// and `fsrm` it copies and clears memory byte by byte, with `la57` a walk of page tables has a fifth level, and `smap` and `smep` are
/// checks. Without them tests of core took a tenth less.
const PROCESSOR: &str = "max,-la57,-smap,-smep,-erms,-fsrm";

/// What the kernel is told. Of these `norandmaps` saves the most: qemu 7.2 keeps what it has translated of a program, but translates
/// it again where the next process has it at other addresses. A test that took 3.3 s takes 1.2 s with it. The kernel distrusts the
/// counter of an emulated processor, and would ask a device for the time whenever somebody wants to know it.
const KERNEL_LINE: &str = "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr norandmaps \
    tsc=reliable clocksource=tsc random.trust_cpu=on";

/// A machine that boots a [`Kernel`], runs one command as root, and powers off.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    kernel: &'a Kernel,
    processors: u32,
    memory: u32,
    deadline: Option<Duration>,
    accelerator: String,
    out: Option<PathBuf>,
    variables: Vec<(String, String)>,
}

impl<'a> Machine<'a> {
    /// Two emulated processors and 2,000 MiB, without a deadline.
    pub fn new(kernel: &'a Kernel) -> Self {
        Self {
            kernel,
            processors: 2,
            memory: 2000,
            deadline: None,
            // With a thread for each processor qemu 7.2 has let one meet code that another was rewriting (static keys of the
            // network stack), on which the guest's kernel ends with `Oops: int3`. Machines that run side by side lose nothing.
            accelerator: "tcg,thread=single".to_owned(),
            out: None,
            variables: Vec::new(),
        }
    }

    /// How many processors it has.
    pub fn processors(mut self, processors: u32) -> Self {
        self.processors = processors;
        self
    }

    /// How much memory it has, in MiB. What the command writes to files is in there, too.
    pub fn memory(mut self, memory: u32) -> Self {
        self.memory = memory;
        self
    }

    /// Ends the machine, with an error, if it runs longer than this.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// What carries out the machine's instructions, as qemu's `-accel` takes it.
    pub fn accelerator(mut self, accelerator: &str) -> Self {
        accelerator.clone_into(&mut self.accelerator);
        self
    }

    /// The folder of this host that the command has as `/out`; one that goes with the machine unless told.
    pub fn out(mut self, out: &Path) -> Self {
        self.out = Some(out.to_owned());
        self
    }

    /// Sets an environment variable of the command. It inherits none.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Boots, runs a command in the current folder, and returns its exit code. What the machine prints goes to stdout.
    /// Without words the command is a shell; stdin is the command's where it is a terminal.
    pub fn run<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<u8, LabError> {
        let own = sandbox::state_dir("vm")?;
        let out = self.out.as_deref().unwrap_or(own.path());
        fs::create_dir_all(out).map_err(LabError::io(format!("making {}", out.display())))?;
        let out = out.canonicalize().map_err(LabError::io(format!("the path of {}", out.display())))?;
        let control = out.join(".vm");
        if control.is_dir() {
            fs::remove_dir_all(&control).map_err(LabError::io(format!("emptying {}", control.display())))?;
        }
        fs::create_dir(&control).map_err(LabError::io(format!("making {}", control.display())))?;
        let write = |name: &str, text: &[u8]| {
            let path = control.join(name);
            fs::write(&path, text).map_err(LabError::io(format!("writing {}", path.display())))
        };
        let words: Vec<String> =
            command.iter().map(|word| quoted(&word.as_ref().to_string_lossy())).collect();
        write("init", INIT.as_bytes())?;
        write("initrd", &initrd::build(self.kernel)?)?;
        write("settings", self.settings()?.as_bytes())?;
        write("command", if words.is_empty() { "exec bash".to_owned() } else { words.join(" ") }.as_bytes())?;
        let status = self.boot(&control.join("initrd"), &out)?;
        let code = fs::read_to_string(control.join("code")).ok();
        code.and_then(|code| code.trim().parse().ok()).ok_or_else(|| {
            let release = self.kernel.release();
            let seen = "its console is above; a panic of the kernel, or a lack of memory, shows there";
            LabError::Invalid(format!("the machine with Linux {release} ended without its command's exit code (qemu: {status}); {seen}"))
        })
    }

    /// What the machine's second program reads.
    fn settings(&self) -> Result<String, LabError> {
        let folder = std::env::current_dir().map_err(LabError::io("the current folder"))?;
        let mut settings = format!(
            "RELEASE={}\nMODULES={}\nFOLDER={}\nTERMINAL={}\n",
            quoted(self.kernel.release()),
            quoted(&self.kernel.modules().to_string_lossy()),
            quoted(&folder.to_string_lossy()),
            if std::io::stdin().is_terminal() { "yes" } else { "" },
        );
        for (name, value) in &self.variables {
            settings.extend(["export ", name, "=", &quoted(value), "\n"]);
        }
        Ok(settings)
    }

    fn boot(&self, initrd: &Path, out: &Path) -> Result<ExitStatus, LabError> {
        let mut qemu = self.qemu(initrd, out)?;
        let line = exec::describe(&qemu);
        let mut child = qemu.spawn().map_err(|source| LabError::Spawn { command: line, source })?;
        let what = || LabError::io("waiting for qemu");
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().map_err(what())? {
                return Ok(status);
            }
            if let Some(waited) = self.deadline.filter(|deadline| start.elapsed() > *deadline) {
                child.kill().map_err(LabError::io("ending qemu"))?;
                child.wait().map_err(what())?;
                let what = format!("the machine with Linux {} to power off", self.kernel.release());
                return Err(LabError::Timeout { what, waited, last: "see its console above".to_owned() });
            }
            thread::sleep(POLL);
        }
    }

    fn qemu(&self, initrd: &Path, out: &Path) -> Result<Command, LabError> {
        let mut qemu = exec::command("setpriv")?;
        // It ends with us, however we end.
        qemu.args(["--pdeathsig", "KILL", "--"]).arg(exec::find("qemu-system-x86_64")?);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"]);
        qemu.args(["-machine", "q35,i8042=off,vmport=off,hpet=off,sata=off,usb=off", "-cpu", PROCESSOR]);
        qemu.args(["-accel", &self.accelerator, "-smp", &self.processors.to_string()]);
        qemu.args(["-m", &format!("{}M", self.memory), "-device", "virtio-rng-pci"]);
        // Ctrl-C is for the command in the machine.
        qemu.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        qemu.arg("-kernel").arg(self.kernel.image()).arg("-initrd").arg(initrd);
        qemu.args(["-append", KERNEL_LINE]);
        qemu.args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]);
        // A comma in a path is doubled for qemu.
        let out = out.to_string_lossy().replace(',', ",,");
        qemu.args([
            "-virtfs",
            &format!("local,path={out},mount_tag=out,security_model=none,multidevs=remap"),
        ]);
        if std::io::stdin().is_terminal() {
            qemu.stdin(Stdio::inherit());
        }
        Ok(qemu)
    }
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_words_back_as_they_were() {
        let words = ["plain", "two words", "", "it's", "$HOME `id` \\ \" *", "line\nbreak"];
        let script = words.map(quoted).join(" ");
        let output = Command::new("sh").args(["-c", &format!("printf '%s|' {script}")]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), words.map(|word| format!("{word}|")).concat());
    }
}
