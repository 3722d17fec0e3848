//! What one ADD of the CNI plugin costs by itself: its delegate is a script that does nothing.
//! Beside it, in every round: `/bin/true` alone, the real host-local (which ADD of every pod executes, too), and
//! the delegate alone. Time is from the start of a process to its end, as its parent sees it.
//!
//! Units: microseconds, KiB of peak memory (`VmHWM` at the exit), bytes of the program.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use flannel_benches::machine::Watch;
use flannel_benches::peak::peak_memory;
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, proc, sys};
use flannel_lab::cni_plugin;
use flannel_lab::sandbox::{Entered, enter_sandbox, is_inside};

/// One ADD of the CNI plugin without its delegate's cost.
#[derive(Parser)]
struct Options {
    /// Rounds; each runs everything once.
    #[arg(long, default_value_t = 500)]
    rounds: u32,
    /// The folder with host-local.
    #[arg(long, default_value = "/usr/lib/cni")]
    plugins: PathBuf,
    /// Where records go: a real disk has fsync cost something.
    #[arg(long, default_value = "/run/cni-add")]
    data_dir: PathBuf,
}

/// One program that is measured.
struct Method {
    name: &'static str,
    program: PathBuf,
    input: String,
    time: Sample,
    memory: Sample,
}

const ENV: &str =
    "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
/// Rounds that look at memory.
const MEMORY_ROUNDS: u32 = 20;
/// Rounds that are not counted: pages, caches.
const WARM_UP: u32 = 20;

fn main() -> Fallible<ExitCode> {
    let options = Options::parse();
    if !is_inside() {
        let built = cni_plugin::build()?;
        let size = fs::metadata(&built.program)?.len();
        println!(
            "{}: {size} bytes ({:.2} MiB), {:?}",
            built.program.display(),
            size as f64 / f64::from(1 << 20),
            built.libc
        );
    }
    match enter_sandbox()? {
        Entered::Outside(code) => Ok(code),
        Entered::Inside => bench(&options),
    }
}

fn bench(options: &Options) -> Fallible<ExitCode> {
    let dir = Path::new("/run/cni-add");
    fs::create_dir_all(dir)?;
    fs::write(dir.join("subnet.env"), ENV)?;
    // The delegate has to say a result, so it is no plain `true`; it is the smallest script of a shell.
    let delegate = dir.join("nothing");
    fs::write(&delegate, "#!/bin/sh\nread line; echo '{}'\n")?;
    fs::set_permissions(&delegate, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let data_dir = options.data_dir.join("records");
    let conf = |ipam: &str| {
        format!(
            r#"{{"cniVersion":"1.0.0","name":"n","type":"flannel","subnetFile":"/run/cni-add/subnet.env",
            "dataDir":"{}","delegate":{{"type":"nothing"}},"ipam":{ipam}}}"#,
            data_dir.display()
        )
    };
    let host_local =
        r#"{"type":"host-local","dataDir":"/run/cni-add/ipam","ranges":[[{"subnet":"10.42.0.0/16"}]]}"#;
    let flannel = cni_plugin::built()?.program;
    let method = |name, program: PathBuf, input: String| Method {
        name,
        program,
        input,
        time: Sample::new(),
        memory: Sample::new(),
    };
    let mut methods = [
        method("true", "/bin/true".into(), String::new()),
        method("delegate alone", delegate, conf("{}")),
        method("flannel ADD", flannel, conf("{}")),
        method("host-local ADD", options.plugins.join("host-local"), conf(host_local)),
    ];
    let before = proc::activity(std::process::id())?;
    let watch = Watch::start();
    let mut ours = Duration::ZERO;
    for round in 0..WARM_UP + options.rounds {
        // Another order in every round.
        for at in 0..methods.len() {
            let count = methods.len();
            let method = &mut methods[(at + round as usize) % count];
            // What was given out before makes host-local slower.
            let _ = fs::remove_dir_all(dir.join("ipam"));
            let (time, cpu) = run(method, dir, round)?;
            ours += cpu;
            if round >= WARM_UP {
                method.time.push(time.as_secs_f64() * 1e6);
            }
        }
    }
    let own = proc::activity(std::process::id())?.since(&before).cpu;
    let foreign = watch.stop().foreign(ours + own);
    for round in 0..MEMORY_ROUNDS {
        for method in &mut methods {
            let mut command = match method.name {
                // It reads nothing, so it has to be held up until it is watched.
                "true" => shell("read line; exec /bin/true"),
                _ => Command::new(&method.program),
            };
            let peak = peak_memory(
                with_env(&mut command, dir, &format!("m{round}")),
                &format!("{}\n", method.input),
            )?;
            method.memory.push(peak as f64 / 1024.0);
        }
    }
    print(&methods, foreign);
    Ok(ExitCode::SUCCESS)
}

fn print(methods: &[Method], foreign: f64) {
    println!("time in us: median (min..max, n); ratios by round");
    for method in methods {
        println!("  {:<15} {:.0}, 99 % within {:.0}", method.name, method.time, method.time.percentile(99));
        println!("  {:<15} {:.0} KiB at its peak", "", method.memory);
        for other in [&methods[0], &methods[3]] {
            if other.name != method.name {
                println!("  {:<15} {:.2} of {}", "", method.time.ratios_to(&other.time), other.name);
            }
        }
    }
    let own: Sample = methods[2].time.ratios_to(&methods[1].time);
    println!("  flannel ADD / delegate alone {own:.2}");
    let difference = methods[2].time.median() - methods[1].time.median();
    println!("  flannel ADD less delegate alone, of medians: {difference:.0} us");
    println!("processor used by others: {:.0} %", foreign * 100.0);
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

fn with_env<'a>(command: &'a mut Command, dir: &Path, container: &str) -> &'a mut Command {
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", "/proc/self/ns/net")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", dir)
        .stderr(Stdio::null())
}

/// Time of one process, and processor time of it and those that it waited for.
fn run(method: &Method, dir: &Path, round: u32) -> Fallible<(Duration, Duration)> {
    // The input is a file, so that nobody has to write while the other starts.
    let input = dir.join("input");
    File::create(&input)?.write_all(method.input.as_bytes())?;
    let mut command = Command::new(&method.program);
    with_env(&mut command, dir, &format!("c{round}")).stdin(File::open(&input)?).stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn()?;
    let mut said = String::new();
    child.stdout.take().ok_or("no stdout")?.read_to_string(&mut said)?;
    let usage = sys::wait_usage(&child)?;
    let time = start.elapsed();
    if !usage.success {
        return Err(format!("{} failed: {said}", method.name).into());
    }
    Ok((time, usage.cpu))
}
