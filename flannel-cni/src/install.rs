//! Installs the plugin and its conflist where container runtimes look, and takes them away again.
//!
//! Each file comes in one step: a runtime executes or reads the old one or the new one. What was there before the first
//! installation stays beside it, under a name that no runtime reads, and comes back with [`Install::undo`].
//!
//! ```no_run
//! use flannel_cni::install::{Conflist, Install};
//!
//! # fn main() -> Result<(), flannel_cni::install::InstallError> {
//! let install = Install::new().plugin("/usr/libexec/flannel").conflist(Conflist::Usual);
//! for done in install.install()? {
//!     println!("{done}"); // "/opt/cni/bin/flannel installed"
//! }
//! install.undo()?;
//! # Ok(())
//! # }
//! ```

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::atomic_file;
use crate::guarded::{self, Dir};

/// The conflist of upstream: this plugin, and `portmap` for host ports.
pub const CONFLIST: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"#;

/// The largest file that is copied, in bytes. Go's plugin has some millions.
pub const MAX_BYTES: u64 = 256 << 20;

/// Behind the name of what was there before. Runtimes read `.conf`, `.conflist` and `.json` only.
const BEFORE: &str = ".before-flanneld";

/// Which conflist is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflist {
    /// [`CONFLIST`].
    Usual,
    /// A copy of this file, which is checked first.
    File(PathBuf),
}

/// What to install, and where. Plugin and conflist are independent of each other: what is not named is left alone, by
/// [`Self::install`] and by [`Self::undo`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    plugin: Option<PathBuf>,
    conflist: Option<Conflist>,
    plugin_dir: PathBuf,
    conf_dir: PathBuf,
    conf_name: String,
}

impl Default for Install {
    fn default() -> Self {
        Self::new()
    }
}

impl Install {
    /// Nothing yet, for the folders that container runtimes use: `/opt/cni/bin` and `/etc/cni/net.d`.
    pub fn new() -> Self {
        Self {
            plugin: None,
            conflist: None,
            plugin_dir: "/opt/cni/bin".into(),
            conf_dir: "/etc/cni/net.d".into(),
            conf_name: "10-flannel.conflist".to_owned(),
        }
    }

    /// The same with the plugin, a copy of this file. It becomes executable whatever the file's mode is. [`Self::undo`]
    /// does not read the file.
    pub fn plugin(mut self, from: impl Into<PathBuf>) -> Self {
        self.plugin = Some(from.into());
        self
    }

    /// The same with a conflist.
    pub fn conflist(mut self, conflist: Conflist) -> Self {
        self.conflist = Some(conflist);
        self
    }

    /// The same with the folder in which the runtime looks for plugins.
    pub fn plugin_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.plugin_dir = folder.into();
        self
    }

    /// The same with the folder in which the runtime looks for configs. It takes the first one by name.
    pub fn conf_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.conf_dir = folder.into();
        self
    }

    /// The same with the conflist's name in its folder, by default `10-flannel.conflist`.
    pub fn conf_name(mut self, name: impl Into<String>) -> Self {
        self.conf_name = name.into();
        self
    }

    /// Installs what was named. A conflist that is none is refused before anything is done, since a runtime that finds a
    /// broken config starts no pod at all.
    pub fn install(&self) -> Result<Vec<Done>, InstallError> {
        let plugin = self.plugin.as_deref().map(read).transpose()?;
        let conflist = self.conflist.as_ref().map(|conflist| match conflist {
            Conflist::File(path) => {
                read(path).and_then(|(text, mode)| check(path, &text).map(|()| (text, mode)))
            }
            Conflist::Usual => Ok((CONFLIST.as_bytes().to_vec(), 0o644)),
        });
        let conflist = conflist.transpose()?;
        // The plugin first, so that no runtime misses one that it is told to use.
        let plugin =
            plugin.map(|(bytes, mode)| put(&self.plugin_path(), &bytes, mode | 0o111)).transpose()?;
        let conflist = conflist.map(|(text, mode)| put(&self.conf_path(), &text, mode)).transpose()?;
        Ok(plugin.into_iter().chain(conflist).collect())
    }

    /// Takes away what was installed of what was named, and puts back what was there before.
    pub fn undo(&self) -> Result<Vec<Done>, InstallError> {
        // The config first, for the same reason.
        let conflist = self.conflist.is_some().then(|| remove(self.conf_path())).transpose()?;
        let plugin = self.plugin.is_some().then(|| remove(self.plugin_path())).transpose()?;
        Ok(conflist.into_iter().chain(plugin).collect())
    }

    fn plugin_path(&self) -> PathBuf {
        self.plugin_dir.join("flannel")
    }

    fn conf_path(&self) -> PathBuf {
        self.conf_dir.join(&self.conf_name)
    }
}

/// What was done with a file, to be told as it is displayed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Done {
    /// It was written.
    Installed(PathBuf),
    /// It was there already, with the same bytes and mode.
    Current(PathBuf),
    /// It was removed; nothing was there before it.
    Removed(PathBuf),
    /// It is what it was before the first installation.
    Restored(PathBuf),
    /// This program never installed it, so it stays as it is.
    NotOurs(PathBuf),
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, what) = match self {
            Self::Installed(path) => (path, "installed"),
            Self::Current(path) => (path, "is there already"),
            Self::Removed(path) => (path, "removed"),
            Self::Restored(path) => (path, "is what it was before"),
            Self::NotOurs(path) => (path, "was not installed by this program, and stays as it is"),
        };
        write!(f, "{} {what}", path.display())
    }
}

/// Something can't be installed or removed.
#[derive(Debug)]
#[non_exhaustive]
pub enum InstallError {
    /// A file to copy can't be read.
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is to be the conflist is none.
    NoConflist {
        /// Which file.
        path: PathBuf,
        /// Why it is none.
        why: String,
    },
    /// A file can't be put in place, removed, or kept.
    Write {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it can't be.
        source: io::Error,
    },
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, .. } => write!(f, "can't read {}", path.display()),
            Self::NoConflist { path, why } => write!(f, "{} is no CNI conflist: {why}", path.display()),
            Self::Write { what, path, .. } => write!(f, "can't {what} {}", path.display()),
        }
    }
}

impl Error for InstallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => Some(source),
            Self::NoConflist { .. } => None,
        }
    }
}

/// Reads what is to be copied, through links: Kubernetes projects the conflist of a `ConfigMap` as one.
fn read(path: &Path) -> Result<(Vec<u8>, u32), InstallError> {
    read_both(path).map_err(|source| InstallError::Read { path: path.to_owned(), source })
}

/// Refuses what no runtime takes for a conflist.
fn check(path: &Path, text: &[u8]) -> Result<(), InstallError> {
    let error = |why: String| InstallError::NoConflist { path: path.to_owned(), why };
    let json: Value = serde_json::from_slice(text).map_err(|why| error(why.to_string()))?;
    let plugins = json.get("plugins").and_then(Value::as_array);
    let plugins = plugins.filter(|plugins| !plugins.is_empty());
    let plugins = plugins.ok_or_else(|| error("it has no list \"plugins\"".to_owned()))?;
    let has_type = |plugin: &Value| plugin.get("type").is_some_and(Value::is_string);
    if !plugins.iter().all(has_type) {
        return Err(error("a plugin of it has no \"type\"".to_owned()));
    }
    if json.get("name").is_none_or(|name| !name.is_string()) {
        return Err(error("it has no \"name\"".to_owned()));
    }
    Ok(())
}

/// Where what was there before the first installation is kept; an empty file says that nothing was.
fn before(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(BEFORE);
    name.into()
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<Done, InstallError> {
    let error = |what| move |source| InstallError::Write { what, path: path.to_owned(), source };
    let old = match read_both(path) {
        Ok(old) => Some(old),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => None,
        Err(other) => return Err(error("read")(other)),
    };
    if old.as_ref().is_some_and(|old| (old.0.as_slice(), old.1) == (bytes, mode)) {
        return Ok(Done::Current(path.to_owned()));
    }
    atomic_file::make_folder_of(path).map_err(error("make the folder of"))?;
    if fs::symlink_metadata(before(path)).is_err() {
        // An upgrade keeps what was there before the first time.
        let (kept, mode) = old.unwrap_or((Vec::new(), 0o600));
        atomic_file::replace(&before(path), &kept, mode).map_err(error("keep what was at"))?;
    }
    atomic_file::replace(path, bytes, mode).map_err(error("write"))?;
    Ok(Done::Installed(path.to_owned()))
}

fn remove(path: PathBuf) -> Result<Done, InstallError> {
    let error = |what| {
        let path = path.clone();
        move |source| InstallError::Write { what, path, source }
    };
    let (kept, mode) = match read_kept(&before(&path)) {
        Ok(kept) => kept,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(Done::NotOurs(path)),
        Err(other) => return Err(error("read what was at")(other)),
    };
    let done = if kept.is_empty() {
        match fs::remove_file(&path) {
            Err(other) if other.kind() != io::ErrorKind::NotFound => return Err(error("remove")(other)),
            _ => Done::Removed,
        }
    } else {
        atomic_file::replace(&path, &kept, mode).map_err(error("put back"))?;
        Done::Restored
    };
    fs::remove_file(before(&path)).map_err(error("remove what was kept of"))?;
    Ok(done(path))
}

fn read_both(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    let (bytes, meta) = guarded::read_linked_with(path, MAX_BYTES)?;
    Ok((bytes, meta.permissions().mode() & 0o777))
}

/// Reads what this program kept, which it never does as a link.
fn read_kept(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    let (dir, name) = Dir::of(path)?;
    let mut file = dir.file(name)?;
    Ok((guarded::read_open(&mut file, MAX_BYTES)?, file.metadata()?.permissions().mode() & 0o777))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn chain(error: &InstallError) -> String {
        format!("{error}: {}", error.source().unwrap())
    }

    struct Host {
        root: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let host = Self { root: tempfile::tempdir().unwrap() };
            host.write("build/flannel", "plugin 1", 0o644);
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }

        fn write(&self, name: &str, text: &str, mode: u32) {
            fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            fs::write(self.path(name), text).unwrap();
            fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
        }

        fn install(&self) -> Install {
            self.only_conf().plugin(self.path("build/flannel"))
        }

        fn only_conf(&self) -> Install {
            self.nothing().conflist(Conflist::Usual)
        }

        fn nothing(&self) -> Install {
            Install::new().plugin_dir(self.path("opt/cni/bin")).conf_dir(self.path("etc/cni/net.d"))
        }

        /// All files below `opt` and `etc`: name, text and mode.
        fn files(&self) -> Vec<(String, String, u32)> {
            let mut files = Vec::new();
            for folder in ["opt/cni/bin", "etc/cni/net.d"] {
                let Ok(entries) = fs::read_dir(self.path(folder)) else { continue };
                for entry in entries.map(Result::unwrap) {
                    let (bytes, mode) = read_both(&entry.path()).unwrap();
                    let name = entry.file_name().into_string().unwrap();
                    files.push((name, String::from_utf8(bytes).unwrap(), mode));
                }
            }
            files.sort();
            files
        }
    }

    #[test]
    fn installs_upgrades_and_is_undone() {
        let host = Host::new();
        for round in 1..=2 {
            host.write("build/flannel", &format!("plugin {round}"), 0o644);
            let done = host.install().install().unwrap();
            assert_eq!(done[0], Done::Installed(host.path("opt/cni/bin/flannel")));
            assert!(done[0].to_string().ends_with("bin/flannel installed"), "{done:?}");
            let files = host.files();
            let of = |name: &str| {
                files.iter().find(|(file, ..)| file == name).map(|(_, text, mode)| (text.as_str(), *mode))
            };
            assert_eq!(of("flannel"), Some((format!("plugin {round}").as_str(), 0o755)));
            assert_eq!(of("10-flannel.conflist"), Some((CONFLIST, 0o644)));
        }
        let again = host.install().install().unwrap();
        assert!(again.iter().all(|done| matches!(done, Done::Current(_))), "{again:?}");
        host.install().undo().unwrap();
        assert_eq!(host.files(), []);
        let again = host.install().undo().unwrap();
        assert!(again.iter().all(|done| matches!(done, Done::NotOurs(_))), "{again:?}");
    }

    #[test]
    fn what_was_there_before_comes_back() {
        let host = Host::new();
        host.write("opt/cni/bin/flannel", "Go's plugin", 0o700);
        host.write("etc/cni/net.d/10-flannel.conflist", "{}", 0o640);
        let before = host.files();
        host.install().install().unwrap();
        host.write("build/flannel", "plugin 2", 0o755);
        host.install().install().unwrap();
        host.install().undo().unwrap();
        assert_eq!(host.files(), before);
    }

    #[test]
    fn what_is_no_file_is_not_waited_for_and_a_link_is_replaced() {
        let host = Host::new();
        host.write("elsewhere", "Go's plugin", 0o755);
        fs::create_dir_all(host.path("opt/cni/bin")).unwrap();
        symlink(host.path("elsewhere"), host.path("opt/cni/bin/flannel")).unwrap();
        host.install().install().unwrap();
        assert!(fs::symlink_metadata(host.path("opt/cni/bin/flannel")).unwrap().is_file());
        assert_eq!(fs::read_to_string(host.path("elsewhere")).unwrap(), "Go's plugin");
        // Made up by somebody else, for root to copy where all can read it.
        let kept = host.path("opt/cni/bin/flannel.before-flanneld");
        fs::remove_file(&kept).unwrap();
        symlink(host.path("elsewhere"), &kept).unwrap();
        let error = chain(&host.install().undo().unwrap_err());
        assert!(error.contains("symbolic link"), "{error}");
        fs::remove_file(host.path("build/flannel")).unwrap();
        nix::unistd::mkfifo(&host.path("build/flannel"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = chain(&host.install().install().unwrap_err());
        assert!(error.contains("build/flannel") && error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_part_by_itself_needs_and_touches_nothing_of_the_other() {
        let host = Host::new();
        let names = || host.files().into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
        fs::remove_file(host.path("build/flannel")).unwrap();
        host.only_conf().install().unwrap();
        let conf = ["10-flannel.conflist", "10-flannel.conflist.before-flanneld"];
        assert_eq!(names(), conf);
        host.write("build/flannel", "plugin", 0o755);
        host.nothing().plugin(host.path("build/flannel")).install().unwrap();
        assert_eq!(names(), [&conf[..], &["flannel", "flannel.before-flanneld"]].concat());
        host.nothing().plugin("").undo().unwrap();
        assert_eq!(names(), conf);
        host.only_conf().undo().unwrap();
        assert_eq!(host.files(), []);
    }

    #[test]
    fn a_config_that_would_stop_all_pods_is_refused_before_anything_is_done() {
        let host = Host::new();
        for (text, why) in [
            ("{", "EOF"),
            ("[]", "plugins"),
            (r#"{"name":"x","plugins":[]}"#, "plugins"),
            (r#"{"name":"x","plugins":[{}]}"#, "type"),
            (r#"{"plugins":[{"type":"flannel"}]}"#, "name"),
        ] {
            host.write("my.conflist", text, 0o600);
            let install = host.install().conflist(Conflist::File(host.path("my.conflist")));
            let error = install.install().unwrap_err().to_string();
            assert!(error.contains("my.conflist is no CNI conflist") && error.contains(why), "{error}");
        }
        let missing = host.install().plugin(host.path("none"));
        assert!(missing.install().unwrap_err().to_string().contains("none"));
        assert_eq!(host.files(), []);
        host.write("my.conflist", r#"{"name":"x","plugins":[{"type":"flannel"}]}"#, 0o600);
        host.install().conflist(Conflist::File(host.path("my.conflist"))).install().unwrap();
        assert!(host.files().iter().any(|(name, _, mode)| name == "10-flannel.conflist" && *mode == 0o600));
    }
}
