//! What every node must do and must not exceed while it is attacked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_lab::agent::Agent;
use flannel_lab::bed::HEALTH_PORT;
use flannel_lab::netns::Netns;
use flannel_lab::wait::wait_for;

use super::Scene;
use crate::Fallible;
use crate::lab::{LIMIT, Lab};

/// Between two looks.
const GLANCE: Duration = Duration::from_millis(250);
/// How long `/healthz` may take. A kubelet gives it a second; this machine is also that of all attackers.
const ANSWER: Duration = Duration::from_secs(5);
/// What an agent may have resident beyond what the largest had before.
const MORE_MEMORY: u64 = 64 << 20;
/// .. and once the attackers are gone: the allocator keeps some of it.
const KEPT_MEMORY: u64 = 32 << 20;
/// Descriptors an agent may have beyond those that it had before: the budget of the health port, and some of its own.
const MORE_DESCRIPTORS: usize = 160;
/// .. and once the attackers are gone.
const KEPT_DESCRIPTORS: usize = 8;
/// Lines that an agent may log a minute, beyond those of its start.
const LINES: u64 = 2000;
/// .. and those of a start.
const START_LINES: u64 = 500;

/// The largest values before the attack.
#[derive(Debug)]
pub(super) struct Watch {
    memory: u64,
    descriptors: usize,
    begin: Instant,
}

impl Watch {
    /// Looks at all nodes as they are at peace.
    pub(super) fn begin(lab: &Lab) -> Fallible<Self> {
        let mut watch = Self { memory: 0, descriptors: 0, begin: Instant::now() };
        for number in lab.numbers() {
            let agent = lab.agent(number);
            watch.memory = watch.memory.max(agent.rss()?);
            watch.descriptors = watch.descriptors.max(agent.descriptors()?);
        }
        Ok(watch)
    }

    /// Looks at a node until the scene is over. An error is a violation.
    pub(super) fn node(&self, scene: &Scene<'_>, number: u8) -> Fallible<String> {
        let netns = scene.lab.node(number).netns().clone();
        let (mut memory, mut descriptors, mut slowest) = (0, 0, Duration::ZERO);
        let lines = Lines::default();
        while !scene.is_over() {
            let busy = scene.busy();
            slowest = slowest.max(healthz(&netns).map_err(|error| format!("node{number}: {error}"))?);
            let agent = scene.lab.agent(number);
            if let Some(status) = agent.exit_status() {
                return Err(format!("node{number}'s agent ended with {status}").into());
            }
            memory = memory.max(agent.rss()?);
            descriptors = descriptors.max(agent.descriptors()?);
            lines.read(&agent)?;
            drop(agent);
            drop(busy);
            self.judge(
                number,
                memory,
                self.memory + MORE_MEMORY,
                descriptors,
                self.descriptors + MORE_DESCRIPTORS,
            )?;
            let minutes = self.begin.elapsed().as_secs_f64() / 60.0;
            // An agent that was started again has another log, and so less.
            if lines.count() as f64 > START_LINES as f64 + LINES as f64 * minutes {
                return Err(
                    format!("node{number} logged {} lines in {minutes:.1} minutes", lines.count()).into()
                );
            }
            sleep(GLANCE);
        }
        Ok(format!(
            "node{number}: {} MiB resident at most ({} at peace), {descriptors} descriptors at most ({} at peace), \
             {} lines of log, /healthz within {} ms",
            memory >> 20,
            self.memory >> 20,
            self.descriptors,
            lines.count(),
            slowest.as_millis()
        ))
    }

    /// Waits until all nodes are about what they were before.
    pub(super) fn settled(&self, lab: &Lab) -> Fallible<()> {
        for number in lab.numbers() {
            let agent = lab.agent(number);
            wait_for(LIMIT, "memory and descriptors to be free again", || {
                let (memory, descriptors) =
                    (agent.rss().unwrap_or_default(), agent.descriptors().unwrap_or_default());
                let (most, many) = (self.memory + KEPT_MEMORY, self.descriptors + KEPT_DESCRIPTORS);
                self.judge(number, memory, most, descriptors, many).map_err(|error| error.to_string())
            })?;
        }
        Ok(())
    }

    fn judge(&self, number: u8, memory: u64, most: u64, descriptors: usize, many: usize) -> Fallible<()> {
        if memory > most {
            let (now, before) = (memory >> 20, self.memory >> 20);
            return Err(format!(
                "node{number}'s agent has {now} MiB resident, {before} MiB before the attack"
            )
            .into());
        }
        if descriptors > many {
            let before = self.descriptors;
            return Err(format!(
                "node{number}'s agent has {descriptors} descriptors, {before} before the attack"
            )
            .into());
        }
        Ok(())
    }
}

/// Counts the lines of a log that grows, of which only what is new is read.
#[derive(Debug, Default)]
struct Lines {
    count: AtomicU64,
    bytes: AtomicU64,
}

impl Lines {
    fn read(&self, agent: &Agent) -> Fallible<()> {
        use std::io::{Seek, SeekFrom};
        let mut file = std::fs::File::open(agent.log_path())?;
        let read = self.bytes.load(Ordering::Relaxed);
        // A new agent begins a new log.
        let from = if file.metadata()?.len() < read { 0 } else { read };
        file.seek(SeekFrom::Start(from))?;
        let mut reader = BufReader::new(file);
        let (mut lines, mut bytes, mut line) = (0, from, Vec::new());
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line)? {
                0 => break,
                length => bytes += length as u64,
            }
            lines += u64::from(line.ends_with(b"\n"));
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        self.count.fetch_add(lines, Ordering::Relaxed);
        Ok(())
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// Asks as a kubelet does, and returns how long the answer took.
fn healthz(netns: &Netns) -> Fallible<Duration> {
    let begin = Instant::now();
    let ask = || -> std::io::Result<String> {
        let address = (Ipv4Addr::LOCALHOST, HEALTH_PORT).into();
        let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer =
        netns.enter(ask)?.map_err(|error| format!("/healthz: {error} after {:?}", begin.elapsed()))?;
    if !answer.starts_with("HTTP/1.1 200 ") {
        return Err(format!("/healthz says {answer:?}").into());
    }
    match begin.elapsed() {
        took if took > ANSWER => Err(format!("/healthz took {took:?}").into()),
        took => Ok(took),
    }
}
