//! What one ADD of the CNI plugin costs by itself: its delegate is a script that does nothing.
//! Beside it, in every round: `/bin/true` alone, the real host-local (which ADD of every pod executes, too), and
//! the delegate alone. Time is from the start of a process to its end, as its parent sees it.
//!
//! Units: microseconds, KiB of peak memory (`ru_maxrss` of wait4), bytes of the program.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use flannel_benches::machine::Watch;
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, sys};
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
    fs::write(&delegate, "#!/bin/sh\necho '{}'\n")?;
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
    let watch = Watch::start();
    let mut ours = Duration::ZERO;
    for round in 0..WARM_UP + options.rounds {
        // Another order in every round.
        for at in 0..methods.len() {
            let count = methods.len();
            let method = &mut methods[(at + round as usize) % count];
            let (time, memory, cpu) = run(method, dir, round)?;
            ours += cpu;
            if round >= WARM_UP {
                method.time.push(time.as_secs_f64() * 1e6);
                method.memory.push(memory);
            }
        }
    }
    print(&methods, watch.stop().foreign(ours));
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
    let own: Sample = (methods[2].time.ratios_to(&methods[1].time)).clone();
    println!("  flannel ADD / delegate alone {own:.2}");
    let difference = methods[2].time.median() - methods[1].time.median();
    println!("  flannel ADD less delegate alone, of medians: {difference:.0} us");
    println!("processor used by others: {:.0} %", foreign * 100.0);
}

/// Time, peak memory in KiB and processor time of one process and those that it waited for.
fn run(method: &Method, dir: &Path, round: u32) -> Fallible<(Duration, f64, Duration)> {
    // The input is a file, so that nobody has to write while the other starts.
    let input = dir.join("input");
    File::create(&input)?.write_all(method.input.as_bytes())?;
    let mut command = Command::new(&method.program);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", format!("c{round}"))
        .env("CNI_NETNS", "/proc/self/ns/net")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", dir)
        .stdin(File::open(&input)?)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn()?;
    let mut said = String::new();
    child.stdout.take().ok_or("no stdout")?.read_to_string(&mut said)?;
    let usage = sys::wait_usage(&child)?;
    let time = start.elapsed();
    if !usage.success {
        return Err(format!("{} failed: {said}", method.name).into());
    }
    Ok((time, usage.peak_kib as f64, usage.cpu))
}
