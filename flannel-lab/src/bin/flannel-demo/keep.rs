//! Keeping the cluster up, for a look around in it from another terminal.

use std::fs;

use flannel_lab::sandbox::holder_pid;
use nix::sys::signal::{SigSet, Signal};

use crate::Fallible;
use crate::lab::{Lab, store};
use crate::screen::{Screen, Style};

/// Whether the sandbox has a user namespace of its own, made for one ordinary user.
pub(crate) fn is_user_sandbox() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    is_one_user(&map)
}

/// A map of one user: inside, outside, how many (`user_namespaces(7)`).
fn is_one_user(map: &str) -> bool {
    map.split_whitespace().nth(2) == Some("1")
}

/// Prints how to look around and waits for Ctrl-C or SIGTERM.
pub(crate) fn until_interrupted(lab: &Lab, screen: &Screen) -> Fallible<()> {
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect::<SigSet>();
    // All pingers are done, so there is no other thread that would take them.
    signals.thread_block()?;
    screen.step("kept", "the cluster stays until Ctrl-C; to look around, paste into another terminal:");
    screen.line("");
    screen.block(&commands(lab, holder_pid().unwrap_or_default(), is_user_sandbox()));
    screen.line(&format!("\n    {}", screen.paint(Style::Strong, "Ctrl-C here ends it all.")));
    signals.wait()?;
    screen.line("");
    screen.step("end", "taking the cluster down");
    Ok(())
}

/// Shell commands to look around with; `holder` is the sandbox's process.
fn commands(lab: &Lab, holder: u32, as_user: bool) -> String {
    let link = lab.node(1).netns().ip("-brief link show type vxlan").unwrap_or_default();
    let link = link.split_whitespace().next().unwrap_or("eth0").to_owned();
    let (subnet_file, store) = (lab.bed.subnet_file(1), store());
    let mut lines = vec![
        enter(holder, as_user),
        String::new(),
        "lab ip netns list".to_owned(),
        "lab ip netns exec node1 ip route".to_owned(),
        "lab ip -n node1 neigh show nud permanent".to_owned(),
        format!("lab bridge -n node1 fdb show dev {link}"),
        "lab ip netns exec node1-pod1 ip address".to_owned(),
        format!("lab cat {}", subnet_file.display()),
        format!("lab sh -c 'tail -n +1 {}/subnets/*'", store.display()),
        noted(&format!("lab ip -n node1 link del {link}"), "and see it come back"),
    ];
    if let Some(agent) = lab.bed.agents().first() {
        lines.push(noted(&format!("lab tail -n 20 {}", agent.log_path().display()), ""));
        lines.push(noted(&format!("lab kill -9 {}", agent.pid()), "node1's agent; pods don't notice"));
    }
    lines.push(noted("lab ls /run/flannel-lab", "all logs"));
    lines.push(noted("lab ip netns exec node1 sh", "a shell on node1"));
    lines.join("\n")
}

fn noted(command: &str, note: &str) -> String {
    format!("{command:<40}  # {note}").trim_end_matches([' ', '#']).to_owned()
}

/// A shell function that runs a command in the sandbox.
fn enter(holder: u32, as_user: bool) -> String {
    let user = if as_user { "--user --preserve-credentials " } else { "" };
    let pid = format!("--pid=/proc/{holder}/ns/pid_for_children");
    format!("lab() {{ nsenter --target {holder} {user}--mount --net \\\n    {pid} \"$@\"; }}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_comments() {
        assert_eq!(noted("ls", ""), "ls");
        assert!(noted("ls", "all").ends_with("  # all"));
    }

    #[test]
    fn an_ordinary_users_sandbox_is_entered_with_its_user_namespace() {
        assert!(is_one_user("         0       1000          1\n"));
        assert!(!is_one_user("         0          0 4294967295\n"));
        assert!(enter(7, true).contains("--user --preserve-credentials --mount"));
        assert!(!enter(7, false).contains("--user"));
    }
}
