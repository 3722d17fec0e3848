//! `ip` or `bridge` kept running in a node, for looks that take microseconds instead of a process each.

use std::io::{BufRead, BufReader, PipeReader, Write, pipe};
use std::process::{Child, ChildStdin, Stdio};

use flannel_lab::netns::Netns;

use crate::Fallible;

/// A tool in batch mode, which reads commands and flushes what it prints after every entry.
#[derive(Debug)]
pub(crate) struct Batch {
    child: Child,
    stdin: ChildStdin,
    output: BufReader<PipeReader>,
    /// A command that always prints one line, by which we know that all before it is done.
    fence: &'static str,
    /// What only that line has in it.
    mark: &'static str,
}

impl Batch {
    /// `ip` in a namespace, with `-4` or `-6`.
    pub(crate) fn ip(netns: &Netns, v6: bool) -> Fallible<Self> {
        Self::start(netns, "ip", &[if v6 { "-6" } else { "-4" }], "link show dev lo", " lo: ")
    }

    /// `bridge` on a node that has a pod.
    pub(crate) fn bridge(netns: &Netns) -> Fallible<Self> {
        Self::start(netns, "bridge", &[], "link show dev pod1", " pod1@")
    }

    fn start(
        netns: &Netns,
        tool: &str,
        args: &[&str],
        fence: &'static str,
        mark: &'static str,
    ) -> Fallible<Self> {
        let (reader, writer) = pipe()?;
        let mut command = netns.command(tool);
        command.args(args).args(["-oneline", "-force", "-batch", "-"]);
        // Errors come between the lines that they belong to.
        command.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().expect("it was asked for");
        let mut batch = Self { child, stdin, output: BufReader::new(reader), fence, mark };
        // The first answer takes as long as the tool's start.
        batch.run("")?;
        Ok(batch)
    }

    /// Runs one command and returns what it printed. An error if the tool reported one.
    pub(crate) fn run(&mut self, command: &str) -> Fallible<String> {
        self.stdin.write_all(format!("{command}\n{}\n", self.fence).as_bytes())?;
        let mut output = String::new();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                return Err(format!("{command:?}: the tool ended, saying {output:?}").into());
            }
            if line.contains(self.mark) {
                break;
            }
            output.push_str(&line);
        }
        if output.contains("Command failed") {
            return Err(format!("{command:?}: {}", output.trim()).into());
        }
        Ok(output)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
