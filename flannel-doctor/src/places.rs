//! Where the files are that the checks read.

use std::path::{Path, PathBuf};

use flannel_core::agent::state_file_of;

/// Paths on the host, before [`crate::Host::root`] is put in front of them. [`Places::default`] has those of an agent
/// without flags.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Places {
    /// The subnet file that the agent writes.
    pub subnet_file: PathBuf,
    /// The state file; `None` for the one beside the subnet file.
    pub state_file: Option<PathBuf>,
    /// Where container runtimes look for CNI configs.
    pub cni_conf_dir: PathBuf,
    /// Where they look for plugins.
    pub cni_bin_dir: PathBuf,
    /// Files that have credentials: private keys, kubeconfigs.
    pub secrets: Vec<PathBuf>,
    /// The folder of a local store.
    pub store_dir: Option<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            subnet_file: "/run/flannel/subnet.env".into(),
            state_file: None,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dir: "/opt/cni/bin".into(),
            secrets: Vec::new(),
            store_dir: None,
        }
    }
}

impl Places {
    /// The same, with another subnet file.
    pub fn subnet_file(self, path: impl Into<PathBuf>) -> Self {
        Self { subnet_file: path.into(), ..self }
    }

    /// The same, with another state file.
    pub fn state_file(self, path: Option<PathBuf>) -> Self {
        Self { state_file: path, ..self }
    }

    /// The same, with other folders of CNI: configs, and plugins.
    pub fn cni(self, conf: impl Into<PathBuf>, bin: impl Into<PathBuf>) -> Self {
        Self { cni_conf_dir: conf.into(), cni_bin_dir: bin.into(), ..self }
    }

    /// The same, with files that have credentials.
    pub fn secrets(self, files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { secrets: files.into_iter().collect(), ..self }
    }

    /// The same, with the folder of a local store.
    pub fn store_dir(self, dir: Option<PathBuf>) -> Self {
        Self { store_dir: dir, ..self }
    }

    /// The state file.
    pub(crate) fn state(&self) -> PathBuf {
        self.state_file.clone().unwrap_or_else(|| state_file_of(&self.subnet_file))
    }

    /// The folder of the subnet file.
    pub(crate) fn run_dir(&self) -> &Path {
        self.subnet_file.parent().unwrap_or(Path::new("/"))
    }
}
