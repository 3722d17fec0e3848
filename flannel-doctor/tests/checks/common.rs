//! Hosts to examine.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use flannel_core::addr::{PerFamily, Subnet, Vni};
use flannel_core::backend::Backend;
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::kernel::Kernel;
use flannel_core::lease::{AgedLease, Ages, Lease};
use flannel_core::netns::Netns;
use flannel_core::state_file::{Device, State};
use flannel_core::testing::FakeKernel;
use flannel_doctor::{Doctor, Finding, Host, Places, StoreToAsk, Trials, Verdict};
use nix::unistd::{Uid, setfsuid};
use serde_json::Value;
use tempfile::TempDir;

/// Where the agent's files are, below the folder of a case.
pub(crate) const SUBNET_FILE: &str = "/run/flannel/subnet.env";
pub(crate) const STATE_FILE: &str = "/run/flannel/subnet.env.state";
/// A subnet file that goes with [`state`].
pub(crate) const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

/// A host, and how to examine it.
pub(crate) struct Case {
    folder: TempDir,
    pub(crate) kernel: FakeKernel,
    host: Host,
    is_real: bool,
    /// Whether files are looked at as a user who may read nothing but what is for everybody.
    pub(crate) is_nobody: bool,
    pub(crate) places: Places,
    pub(crate) store: Option<StoreToAsk>,
    pub(crate) status: Option<Value>,
    pub(crate) backends: Vec<Arc<dyn Backend>>,
}

/// The user of nobody. Files are seen as this user by threads that say so (setfsuid(2)); root's other rights stay.
const NOBODY: Uid = Uid::from_raw(65534);

impl Case {
    /// A host that is a folder of files and a kernel in memory.
    pub(crate) fn of_files() -> Self {
        let (folder, kernel) = (tempfile::tempdir().unwrap(), FakeKernel::default());
        let opened = kernel.clone();
        let host = Host::new(Netns::current().unwrap())
            .root(folder.path())
            .kernel(Arc::new(move |_| Ok(Box::new(opened.clone()) as Box<dyn Kernel>)));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self::new(folder, kernel, host, Places::default().subnet_file(SUBNET_FILE))
    }

    /// The host of a namespace with the real kernel and its parameters; only the agent's files are in a folder.
    pub(crate) fn of_netns(netns: Netns) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::default().subnet_file(folder.path().join("run/flannel/subnet.env"));
        Self { is_real: true, ..Self::new(folder, FakeKernel::default(), Host::new(netns), places) }
    }

    fn new(folder: TempDir, kernel: FakeKernel, host: Host, places: Places) -> Self {
        let (store, status, backends) = (None, None, Vec::new());
        Self { folder, kernel, host, is_real: false, is_nobody: false, places, store, status, backends }
    }

    pub(crate) fn with_trials(self, trials: Arc<dyn Trials>) -> Self {
        Self { host: self.host.trials(trials), ..self }
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    /// Writes a file, with its folders, for everybody to read.
    pub(crate) fn file(&self, path: &str, text: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        self.mode_of(&path, 0o644)
    }

    fn mode_of(&self, path: &Path, mode: u32) -> &Self {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    pub(crate) fn mode(&self, path: &str, mode: u32) -> &Self {
        self.mode_of(&self.path(path), mode)
    }

    pub(crate) fn remove(&self, path: &str) -> &Self {
        fs::remove_file(self.path(path)).unwrap();
        self
    }

    /// Writes the agent's files.
    pub(crate) fn agent_files(&self, state: &State) -> &Self {
        self.file(SUBNET_FILE, SUBNET_ENV);
        state.write(&self.path(STATE_FILE)).unwrap();
        self
    }

    pub(crate) fn doctor(&self) -> Doctor {
        let doctor = Doctor::new(self.host.clone()).places(self.places.clone());
        doctor.store(self.store.clone()).agent_status(self.status.clone()).backends(self.backends.clone())
    }

    pub(crate) fn finding(&self, check: &str) -> Finding {
        let examine = async {
            let report = self.doctor().only([check]).unwrap().examine().await;
            report.of(check).unwrap().clone()
        };
        if !self.is_nobody {
            return block_on(examine);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_start(|| _ = setfsuid(NOBODY))
            .build()
            .unwrap();
        let before = setfsuid(NOBODY);
        let finding = runtime.block_on(examine);
        setfsuid(before);
        finding
    }

    /// The check finds nothing wrong.
    #[track_caller]
    pub(crate) fn passes(&self, check: &str) {
        let finding = self.finding(check);
        assert_eq!(finding.verdict, Verdict::Ok, "{check}: {finding:#?}");
        assert!(finding.fix.is_none(), "{check}: {finding:#?}");
    }

    /// The check finds something that has this in its evidence, and says what to do.
    #[track_caller]
    pub(crate) fn fails(&self, check: &str, verdict: Verdict, part: &str) {
        let finding = self.finding(check);
        assert_eq!(finding.verdict, verdict, "{check}: {finding:#?}");
        assert!(
            finding.evidence.iter().any(|line| line.contains(part)),
            "{check}: {part:?} is not in {finding:#?}"
        );
        let fix = finding.fix.as_deref().unwrap_or_default();
        assert!(!fix.is_empty() && !fix.contains('\n'), "{check}: {finding:#?}");
    }

    /// The check can't be done, for a reason that has this in it.
    #[track_caller]
    pub(crate) fn skips(&self, check: &str, part: &str) {
        let finding = self.finding(check);
        assert_eq!(finding.verdict, Verdict::Skipped, "{check}: {finding:#?}");
        assert!(
            finding.evidence.iter().any(|line| line.contains(part)),
            "{check}: {part:?} is not in {finding:#?}"
        );
    }

    pub(crate) fn is_real(&self) -> bool {
        self.is_real
    }
}

pub(crate) fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text, LeaseSource::Assigned).unwrap()
}

/// A vxlan lease of the node with a number, for IPv4: `10.244.N.0/24` at `192.0.2.N`.
pub(crate) fn lease(number: u8, mac: u8) -> Lease {
    let value = format!(
        r#"{{"PublicIP":"192.0.2.{number}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{mac:02x}"}}}}"#
    );
    Lease::decode(&format!("10.244.{number}.0-24"), value.as_bytes(), 1).unwrap()
}

/// The state of a vxlan agent on node 1, with node 2 as its peer.
pub(crate) fn state() -> State {
    let config = config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let device = Device::vxlan("flannel.1", Vni::new(1).unwrap());
    let mut state = State::of_backend("vxlan", &config).devices([device]).own(lease(1, 1));
    state.config = Some(config);
    with_peer(state, lease(2, 2))
}

pub(crate) fn with_peer(mut state: State, peer: Lease) -> State {
    state.leases.insert(peer.key, Arc::new(AgedLease { lease: peer, ages: Ages::all(1) }));
    state
}

pub(crate) fn networks(text: &str) -> PerFamily<Subnet> {
    let subnet: Subnet = text.parse().unwrap();
    PerFamily::from_fn(|family| (family == subnet.family()).then_some(subnet))
}

/// Runs a program in this thread's namespace.
pub(crate) fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {err}");
}

/// Sets a kernel parameter of this thread's namespace.
pub(crate) fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/{name}"), value).unwrap_or_else(|error| panic!("{name}: {error}"));
}
