//! `flanneld install-cni`: installs the CNI plugin and its conflist where container runtimes look, and removes them
//! again.
//!
//! Each file is replaced atomically: a runtime executes or reads the old one or the new one. The file that was there
//! before is kept beside it, under a name that no runtime reads, and is restored by `--undo`.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use flannel_core::atomic_file;
use flannel_core::error::chain;
use flannel_core::guarded::{self, Dir};

/// What the operator asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InstallOptions {
    /// The plugin to copy; `None` for the file `flannel` beside this program.
    pub(crate) plugin: Option<PathBuf>,
    /// Where runtimes look for plugins.
    pub(crate) plugin_dir: PathBuf,
    /// The conflist to copy; `None` for the one of this program.
    pub(crate) conf: Option<PathBuf>,
    /// Where runtimes look for configs.
    pub(crate) conf_dir: PathBuf,
    /// The name of the conflist there.
    pub(crate) conf_name: String,
    /// The only part to install; `None` for both.
    pub(crate) only: Option<Part>,
    /// Whether to undo the installation.
    pub(crate) undo: bool,
}

/// A part that can be installed by itself, as a pod's init containers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The plugin.
    Plugin,
    /// The conflist.
    Conf,
}

/// Something can't be installed or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// A file to copy can't be read.
    #[error("can't read {}{}", path.display(), hint(path))]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not a valid conflist.
    #[error("{} is no CNI conflist: {why}", path.display())]
    NoConflist {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A file can't be put or removed.
    #[error("can't {what} {}", path.display())]
    Write {
        /// What was tried.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn hint(path: &Path) -> &'static str {
    if path.ends_with("flannel") { "; --plugin=FILE names the plugin that is to be copied" } else { "" }
}

/// Upstream's conflist.
const CONFLIST: &str = r#"{
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
const MAX_BYTES: u64 = 256 << 20;

/// The suffix of the file that was there before. Runtimes read only `.conf`, `.conflist` and `.json`.
const BEFORE: &str = ".before-flanneld";

/// Installs or undoes, and prints what it did.
pub(crate) fn main(options: &InstallOptions) -> ExitCode {
    let program = std::env::current_exe().ok();
    match run(options, program.as_deref().and_then(Path::parent)) {
        Ok(report) => {
            let _ = io::stdout().write_all((report.join("\n") + "\n").as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "flanneld install-cni: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// What a run did, for the operator.
pub(crate) type Report = Vec<String>;

/// Installs or undoes. `beside` is the folder of this program.
pub(crate) fn run(options: &InstallOptions, beside: Option<&Path>) -> Result<Report, InstallError> {
    let InstallOptions { plugin, plugin_dir, conf, conf_dir, conf_name, only, undo } = options;
    let (plugin_to, conf_to) = (plugin_dir.join("flannel"), conf_dir.join(conf_name));
    let asked = |part: Part| only.is_none_or(|only| only == part);
    let mut report = Report::new();
    if *undo {
        // The config is removed first, so that no runtime misses a plugin that its config names.
        for (part, path) in [(Part::Conf, conf_to), (Part::Plugin, plugin_to)] {
            report.extend(asked(part).then(|| remove(&path)).transpose()?);
        }
        return Ok(report);
    }
    let plugin = || plugin.clone().unwrap_or_else(|| beside.unwrap_or(Path::new(".")).join("flannel"));
    let plugin = asked(Part::Plugin).then(|| read(&plugin())).transpose()?;
    let conf = || match conf {
        Some(path) => read(path).and_then(|(text, mode)| check(path, &text).map(|()| (text, mode))),
        None => Ok((CONFLIST.as_bytes().to_vec(), 0o644)),
    };
    let conf = asked(Part::Conf).then(conf).transpose()?;
    // The plugin first, for the same reason. It must be executable, whatever its copy elsewhere is.
    report.extend(plugin.map(|(bytes, mode)| put(&plugin_to, &bytes, mode | 0o111)).transpose()?);
    report.extend(conf.map(|(text, mode)| put(&conf_to, &text, mode)).transpose()?);
    Ok(report)
}

/// Reads a file to copy. Links are followed, since Kubernetes projects the conflist of a `ConfigMap` as a link.
fn read(path: &Path) -> Result<(Vec<u8>, u32), InstallError> {
    read_both(path).map_err(|source| InstallError::Read { path: path.to_owned(), source })
}

/// Checks a conflist, since a runtime with a broken config starts no pods.
fn check(path: &Path, text: &[u8]) -> Result<(), InstallError> {
    let error = |why: String| InstallError::NoConflist { path: path.to_owned(), why };
    let json: serde_json::Value = serde_json::from_slice(text).map_err(|why| error(why.to_string()))?;
    let plugins = json.get("plugins").and_then(serde_json::Value::as_array);
    let plugins = plugins.filter(|plugins| !plugins.is_empty());
    let plugins = plugins.ok_or_else(|| error("it has no list \"plugins\"".to_owned()))?;
    let has_type = |plugin: &serde_json::Value| plugin.get("type").is_some_and(serde_json::Value::is_string);
    if !plugins.iter().all(has_type) {
        return Err(error("a plugin of it has no \"type\"".to_owned()));
    }
    if json.get("name").is_none_or(|name| !name.is_string()) {
        return Err(error("it has no \"name\"".to_owned()));
    }
    Ok(())
}

/// The path of the file from before the first installation; it is empty if there was none.
fn before(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(BEFORE);
    name.into()
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<String, InstallError> {
    let error = |what| move |source| InstallError::Write { what, path: path.to_owned(), source };
    let old = match read_both(path) {
        Ok(old) => Some(old),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => None,
        Err(other) => return Err(error("read")(other)),
    };
    if old.as_ref().is_some_and(|old| (old.0.as_slice(), old.1) == (bytes, mode)) {
        return Ok(format!("{} is there already", path.display()));
    }
    if fs::symlink_metadata(before(path)).is_err() {
        // An upgrade keeps the file from before the first installation.
        let (kept, mode) = old.unwrap_or((Vec::new(), 0o600));
        atomic_file::replace(&before(path), &kept, mode).map_err(error("keep what was at"))?;
    }
    atomic_file::replace(path, bytes, mode).map_err(error("write"))?;
    Ok(format!("{} installed", path.display()))
}

fn remove(path: &Path) -> Result<String, InstallError> {
    let error = |what| move |source| InstallError::Write { what, path: path.to_owned(), source };
    let (kept, mode) = match read_kept(&before(path)) {
        Ok(kept) => kept,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
            return Ok(format!("{} was not installed by this program, and stays as it is", path.display()));
        }
        Err(other) => return Err(error("read what was at")(other)),
    };
    let told = if kept.is_empty() {
        match fs::remove_file(path) {
            Err(other) if other.kind() != io::ErrorKind::NotFound => return Err(error("remove")(other)),
            _ => format!("{} removed", path.display()),
        }
    } else {
        atomic_file::replace(path, &kept, mode).map_err(error("put back"))?;
        format!("{} is what it was before", path.display())
    };
    fs::remove_file(before(path)).map_err(error("remove what was kept of"))?;
    Ok(told)
}

fn read_both(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    let (bytes, meta) = guarded::read_linked_with(path, MAX_BYTES)?;
    Ok((bytes, meta.permissions().mode() & 0o777))
}

/// Reads a file that this program kept, which is never a link.
fn read_kept(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    let (dir, name) = Dir::of(path)?;
    let mut file = dir.file(name)?;
    Ok((guarded::read_open(&mut file, MAX_BYTES)?, file.metadata()?.permissions().mode() & 0o777))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

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

        fn options(&self, undo: bool) -> InstallOptions {
            InstallOptions {
                plugin: None,
                plugin_dir: self.path("opt/cni/bin"),
                conf: None,
                conf_dir: self.path("etc/cni/net.d"),
                conf_name: "10-flannel.conflist".to_owned(),
                only: None,
                undo,
            }
        }

        fn run(&self, options: &InstallOptions) -> Result<Report, InstallError> {
            run(options, Some(&self.path("build")))
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
            let report = host.run(&host.options(false)).unwrap();
            assert!(report[0].ends_with("bin/flannel installed"), "{report:?}");
            let files = host.files();
            let of = |name: &str| {
                files.iter().find(|(file, ..)| file == name).map(|(_, text, mode)| (text.as_str(), *mode))
            };
            assert_eq!(of("flannel"), Some((format!("plugin {round}").as_str(), 0o755)));
            assert_eq!(of("10-flannel.conflist"), Some((CONFLIST, 0o644)));
        }
        let again = host.run(&host.options(false)).unwrap();
        assert!(again.iter().all(|line| line.ends_with("is there already")), "{again:?}");
        host.run(&host.options(true)).unwrap();
        assert_eq!(host.files(), []);
        let report = host.run(&host.options(true)).unwrap();
        assert!(report.iter().all(|line| line.contains("was not installed by this program")), "{report:?}");
    }

    #[test]
    fn what_was_there_before_comes_back() {
        let host = Host::new();
        host.write("opt/cni/bin/flannel", "Go's plugin", 0o700);
        host.write("etc/cni/net.d/10-flannel.conflist", "{}", 0o640);
        let before = host.files();
        host.run(&host.options(false)).unwrap();
        host.write("build/flannel", "plugin 2", 0o755);
        host.run(&host.options(false)).unwrap();
        host.run(&host.options(true)).unwrap();
        assert_eq!(host.files(), before);
    }

    #[test]
    fn what_is_no_file_is_not_waited_for_and_a_link_is_replaced() {
        let host = Host::new();
        host.write("elsewhere", "Go's plugin", 0o755);
        fs::create_dir_all(host.path("opt/cni/bin")).unwrap();
        symlink(host.path("elsewhere"), host.path("opt/cni/bin/flannel")).unwrap();
        host.run(&host.options(false)).unwrap();
        assert!(fs::symlink_metadata(host.path("opt/cni/bin/flannel")).unwrap().is_file());
        assert_eq!(fs::read_to_string(host.path("elsewhere")).unwrap(), "Go's plugin");
        // Made up by somebody else, for root to copy where all can read it.
        let kept = host.path("opt/cni/bin/flannel.before-flanneld");
        fs::remove_file(&kept).unwrap();
        symlink(host.path("elsewhere"), &kept).unwrap();
        let error = chain(&host.run(&host.options(true)).unwrap_err());
        assert!(error.contains("symbolic link"), "{error}");
        fs::remove_file(host.path("build/flannel")).unwrap();
        nix::unistd::mkfifo(&host.path("build/flannel"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = chain(&host.run(&host.options(false)).unwrap_err());
        assert!(error.contains("build/flannel") && error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_part_by_itself_needs_and_touches_nothing_of_the_other() {
        let host = Host::new();
        let only = |part, undo| InstallOptions { only: Some(part), ..host.options(undo) };
        let names = || host.files().into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
        fs::remove_file(host.path("build/flannel")).unwrap();
        host.run(&only(Part::Conf, false)).unwrap();
        let conf = ["10-flannel.conflist", "10-flannel.conflist.before-flanneld"];
        assert_eq!(names(), conf);
        host.write("build/flannel", "plugin", 0o755);
        let no_conf = InstallOptions { conf: Some(host.path("none")), ..only(Part::Plugin, false) };
        host.run(&no_conf).unwrap();
        assert_eq!(names(), [&conf[..], &["flannel", "flannel.before-flanneld"]].concat());
        host.run(&only(Part::Plugin, true)).unwrap();
        assert_eq!(names(), conf);
        host.run(&only(Part::Conf, true)).unwrap();
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
            let options = InstallOptions { conf: Some(host.path("my.conflist")), ..host.options(false) };
            let error = host.run(&options).unwrap_err().to_string();
            assert!(error.contains("my.conflist is no CNI conflist") && error.contains(why), "{error}");
        }
        let missing = InstallOptions { plugin: Some(host.path("none")), ..host.options(false) };
        assert!(host.run(&missing).unwrap_err().to_string().contains("none"));
        assert_eq!(host.files(), []);
        host.write("my.conflist", r#"{"name":"x","plugins":[{"type":"flannel"}]}"#, 0o600);
        let options = InstallOptions { conf: Some(host.path("my.conflist")), ..host.options(false) };
        host.run(&options).unwrap();
        assert!(host.files().iter().any(|(name, _, mode)| name == "10-flannel.conflist" && *mode == 0o600));
    }
}
