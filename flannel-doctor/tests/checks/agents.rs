//! Processes that are agents, and what they say.

use std::os::unix::fs::symlink;

use flannel_doctor::Verdict::{Failure, Note, Warning};
use serde_json::json;

use super::common::Case;

#[test]
fn how_many_agents_run() {
    let case = Case::of_files();
    case.fails("agents", Warning, "no agent runs");
    case.file("/proc/7/cmdline", "/usr/bin/flanneld\0-v=1\0").file("/proc/7/status", "PPid:\t1\n");
    case.file("/proc/9/cmdline", "/usr/bin/flanneld\0doctor\0");
    case.passes("agents");
    // The first process of a container and its child are one agent.
    case.file("/proc/8/cmdline", "/usr/bin/flanneld\0-v=1\0").file("/proc/8/status", "PPid:\t7\n");
    case.passes("agents");
    case.file("/proc/8/status", "PPid:\t1\n");
    case.fails("agents", Failure, "agents with the pids 7, 8 use one subnet file");
    case.file("/proc/8/cmdline", "/usr/bin/flanneld\0--subnet-file=/run/b.env\0");
    case.fails("agents", Note, "2 agents run here, with different subnet files");
    // A relative path begins where the agent works.
    case.file("/proc/8/cmdline", "/usr/bin/flanneld\0--subnet-file=subnet.env\0");
    symlink("/run/b", case.path("/proc/8/cwd")).unwrap();
    case.fails("agents", Note, "different subnet files");
    case.remove("/proc/8/cwd");
    symlink("/run/flannel", case.path("/proc/8/cwd")).unwrap();
    case.fails("agents", Failure, "agents with the pids 7, 8 use one subnet file");
}

#[test]
fn what_the_agent_says() {
    let mut case = Case::of_files();
    case.skips("agent-problems", "no status of a running agent");
    case.status = Some(json!({ "ready": true, "reasons": [], "notes": [] }));
    case.passes("agent-problems");
    case.status =
        Some(json!({ "ready": true, "notes": [{ "kind": "remark", "text": "rules can't be seen" }] }));
    case.fails("agent-problems", Note, "rules can't be seen");
    case.status = Some(json!({ "ready": false, "reasons": ["store away for 42 s"] }));
    case.fails("agent-problems", Failure, "store away for 42 s");
    case.status = Some(json!({ "ready": false }));
    case.fails("agent-problems", Failure, "not ready");
}
