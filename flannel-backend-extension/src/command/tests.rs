use std::path::Path;

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use nix::sys::signal::kill;

use super::*;

fn request(args: &[&str]) -> Request {
    Request {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        variables: vec![("SUBNET", "10.5.1.0/24".to_owned())],
        input: "published".to_owned(),
        limit: Duration::from_mins(10),
    }
}

fn processes() -> Processes {
    let environment = [("PATH", "/usr/bin:/bin"), ("OF_EMBEDDER", "yes"), ("SUBNET", "other")];
    let environment = environment.map(|(name, value)| (name.into(), value.into()));
    Processes { netns: Netns::current().unwrap(), environment: environment.into() }
}

async fn run(args: &[&str]) -> Result<String, CommandError> {
    processes().run(request(args)).await
}

async fn sh(script: &str) -> Result<String, CommandError> {
    run(&["sh", "-c", script, "sh", "a b"]).await
}

#[tokio::test]
async fn a_command_gets_arguments_variables_and_input_and_no_other_environment() {
    assert_eq!(sh(r#"cat; echo "$1 $SUBNET $OF_EMBEDDER""#).await.unwrap(), "published\na b 10.5.1.0/24 yes");
    let names = sh("env | sed 's/=.*//' | grep -vx '_\\|PWD\\|SHLVL' | sort").await.unwrap();
    assert_eq!(names, "OF_EMBEDDER\nPATH\nSUBNET", "nothing of this process");
    assert_eq!(run(&["echo", "$SUBNET; `x`"]).await.unwrap(), "$SUBNET; `x`", "there is no shell");
}

#[tokio::test]
async fn a_failure_has_the_status_and_the_last_lines() {
    for (script, want) in [
        ("echo out; echo 'no such thing' >&2; exit 3", "sh failed (exit status: 3): no such thing"),
        ("echo only; exit 1", "sh failed (exit status: 1): only"),
        ("kill -9 $$", "sh failed (signal: 9 (SIGKILL))"),
        // More than a pipe holds.
        (
            "head -c 300000 /dev/zero | tr '\\0' x >&2; echo >&2; echo end >&2; exit 4",
            "sh failed (exit status: 4): ..",
        ),
    ] {
        let error = sh(script).await.unwrap_err().to_string();
        assert!(error.starts_with(want), "{error}");
    }
    let error = run(&["/nowhere/x", "secret"]).await.unwrap_err().to_string();
    assert_eq!(error, "/nowhere/x can't be run: No such file or directory (os error 2)");
    assert!(matches!(run(&[""]).await, Err(CommandError::NoProgram)));
    assert!(matches!(sh("head -c 20000 /dev/zero").await, Err(CommandError::TooMuch { .. })));
}

#[tokio::test]
async fn what_does_not_read_its_input_or_leaves_something_behind_ends_all_the_same() {
    let input = "x".repeat(1 << 20);
    assert_eq!(processes().run(Request { input, ..request(&["true"]) }).await.unwrap(), "");
    let left = sh("sleep 600 & echo $!").await.unwrap();
    let left = Pid::from_raw(left.parse().unwrap());
    assert_eq!(kill(left, None), Ok(()), "what it started on purpose lives on");
    kill(left, Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn one_that_takes_too_long_is_killed() {
    let limit = Duration::from_millis(10);
    let error = processes().run(Request { limit, ..request(&["sleep", "600"]) }).await.unwrap_err();
    assert!(error.to_string().contains("did not end within 0 s (Backend.CommandTimeout)"), "{error}");
}

fn pid_in(file: &Path) -> Option<Pid> {
    std::fs::read_to_string(file).ok()?.strip_suffix('\n')?.parse().ok().map(Pid::from_raw)
}

fn is_alive(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie waits for whoever adopted it.
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test]
async fn with_a_command_that_is_dropped_goes_all_that_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", file.display());
    let task = tokio::spawn(async move { sh(&script).await });
    let pid = loop {
        match pid_in(&file) {
            Some(pid) => break pid,
            None => tokio::task::yield_now().await,
        }
    };
    assert!(is_alive(pid));
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    while is_alive(pid) {
        tokio::task::yield_now().await;
    }
}

#[test]
fn it_runs_in_the_namespace_of_the_agent() {
    in_sandbox(test_name!(), || {
        let made = std::process::Command::new("ip").args(["netns", "add", "other"]).status().unwrap();
        assert!(made.success());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let of = |netns| {
            let processes = Processes { netns, ..processes() };
            runtime.block_on(processes.run(request(&["readlink", "/proc/self/ns/net"]))).unwrap()
        };
        let here = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_eq!(of(Netns::current().unwrap()), here.to_string_lossy());
        assert_ne!(of(Netns::open("/run/netns/other").unwrap()), here.to_string_lossy());
    });
}
