//! Where the files are that the checks read.

use std::io;
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

    /// The same with absolute paths, by which files of agents are compared. A relative path begins at the working directory of
    /// this process, or with [another root](crate::Host::root) at that one.
    pub fn absolute(mut self, root: &Path) -> io::Result<Self> {
        let is_own = root == Path::new("/");
        let paths = [&mut self.subnet_file, &mut self.cni_conf_dir, &mut self.cni_bin_dir].into_iter();
        for path in paths.chain(&mut self.state_file).chain(&mut self.secrets).chain(&mut self.store_dir) {
            *path = if is_own { std::path::absolute(&path)? } else { Path::new("/").join(&path) };
        }
        Ok(self)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_begin_at_the_working_directory_or_another_root() {
        let given = Places::default().subnet_file("a/subnet.env").state_file(Some("s".into())).cni("/c", "b");
        let given = given.secrets(["k".into()]).store_dir(Some("d".into()));
        let all = |places: &Places| {
            let Places { subnet_file, state_file, cni_conf_dir, cni_bin_dir, secrets, store_dir } = places;
            let some = [state_file, store_dir].map(|path| path.clone().unwrap());
            [subnet_file, cni_conf_dir, cni_bin_dir, &secrets[0], &some[0], &some[1]].map(Clone::clone)
        };
        let from = |folder: &Path| ["a/subnet.env", "/c", "b", "k", "s", "d"].map(|path| folder.join(path));
        let here = std::env::current_dir().unwrap();
        assert_eq!(all(&given.clone().absolute(Path::new("/")).unwrap()), from(&here));
        assert_eq!(all(&given.absolute(Path::new("/host")).unwrap()), from(Path::new("/")));
    }
}
