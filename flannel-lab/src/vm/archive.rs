//! Kernels of Debian's archive, fetched and unpacked once.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{LabError, exec};

/// Architectures whose kernels the lab can boot, as Rust and as Debian name them.
const ARCHITECTURES: [(&str, &str); 1] = [("x86_64", "amd64")];

/// A kernel and its modules, unpacked.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The folder with `boot` and `lib`.
    root: PathBuf,
    /// What `uname -r` says in it.
    release: String,
}

impl Kernel {
    /// The newest kernel of a series such as `6.1` that this host's package sources have, from `<cache>/<series>` if it
    /// was fetched before.
    ///
    /// apt downloads the package and verifies its checksum and signature; nothing is installed. Where apt does not know
    /// the series, or knows a package that the archive has no more, its lists are updated, for which it takes root.
    pub fn fetch(series: &str, cache: &Path) -> Result<Self, LabError> {
        let architecture = architecture(std::env::consts::ARCH)?;
        if !is_series(series) {
            return Err(LabError::Invalid(format!("kernel {series:?}: not a series such as 6.1")));
        }
        let root = cache.join(series);
        if !root.is_dir() {
            fs::create_dir_all(cache).map_err(LabError::io(format!("making {}", cache.display())))?;
            let cache =
                cache.canonicalize().map_err(LabError::io(format!("the path of {}", cache.display())))?;
            unpack(&download(series, architecture, &cache)?, &root)?;
        }
        Self::unpacked(&root)
    }

    /// The kernel that `dpkg-deb --extract` put into a folder.
    pub fn unpacked(root: &Path) -> Result<Self, LabError> {
        let boot = root.join("boot");
        let files = fs::read_dir(&boot).map_err(LabError::io(format!("reading {}", boot.display())))?;
        let mut names = files.flatten().filter_map(|file| file.file_name().into_string().ok());
        let release = names.find_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned));
        let release = release.ok_or_else(|| LabError::Invalid(format!("no kernel in {}", boot.display())))?;
        let root = root.canonicalize().map_err(LabError::io(format!("the path of {}", root.display())))?;
        Ok(Self { root, release })
    }

    /// What `uname -r` says in it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The folder with `boot` and `lib`.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The image that a boot loader loads.
    pub(super) fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The folder with its modules.
    pub(super) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }
}

/// Debian's name of an architecture whose kernels can be booted.
fn architecture(host: &str) -> Result<&'static str, LabError> {
    let known = ARCHITECTURES.iter().find(|(rust, _)| *rust == host);
    known.map(|(_, debian)| *debian).ok_or_else(|| {
        LabError::Invalid(format!("virtual machines are for x86-64 alone, and this machine is {host}"))
    })
}

fn is_series(text: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split('.').count() == 2 && text.split('.').all(is_number)
}

/// Downloads the newest kernel of a series into the cache: the path of the package.
fn download(series: &str, architecture: &str, cache: &Path) -> Result<PathBuf, LabError> {
    if let Ok(package) = try_download(series, architecture, cache) {
        return Ok(package);
    }
    update()?;
    try_download(series, architecture, cache)
}

fn try_download(series: &str, architecture: &str, cache: &Path) -> Result<PathBuf, LabError> {
    let mut names = exec::command("apt-cache")?;
    names.args(["pkgnames", &format!("linux-image-{series}.")]);
    let names = exec::output(names)?;
    let name = newest(names.lines(), series, architecture).ok_or_else(|| {
        let why = "no package source of this host has it: see /etc/apt/sources.list.d";
        LabError::Invalid(format!("no package linux-image-{series}.*-{architecture}; {why}"))
    })?;
    let place =
        tempfile::tempdir_in(cache).map_err(LabError::io(format!("a folder in {}", cache.display())))?;
    let mut download = exec::command("apt-get")?;
    // The downloads' own user can't write here, and verifying doesn't need one.
    download
        .args(["download", "--quiet=2", "--option=APT::Sandbox::User=root", &name])
        .current_dir(place.path());
    exec::output(download)?;
    let files =
        fs::read_dir(place.path()).map_err(LabError::io(format!("reading {}", place.path().display())))?;
    let package =
        files.flatten().map(|file| file.path()).find(|path| path.extension().is_some_and(|it| it == "deb"));
    let package =
        package.ok_or_else(|| LabError::unexpected("apt-get download", format!("no package {name}")))?;
    let kept = cache.join(format!("{series}.deb"));
    fs::rename(&package, &kept).map_err(LabError::io(format!("moving {}", package.display())))?;
    Ok(kept)
}

/// Reads the lists of packages again.
fn update() -> Result<(), LabError> {
    let mut command = if nix::unistd::geteuid().is_root() {
        exec::command("apt-get")?
    } else {
        let mut command = exec::command("sudo")?;
        command.args(["--non-interactive", "apt-get"]);
        command
    };
    command.args(["update", "--quiet=2"]);
    exec::output(command).map(drop)
}

/// Unpacks a package, whole or not at all, and removes it.
fn unpack(package: &Path, root: &Path) -> Result<(), LabError> {
    // Not by `with_extension`: to that 6.1 and 6.12 are one name with two extensions, and both are unpacked at once.
    let mut half = root.as_os_str().to_owned();
    half.push(".unpacking");
    let half = Path::new(&half);
    if half.is_dir() {
        fs::remove_dir_all(half).map_err(LabError::io(format!("removing {}", half.display())))?;
    }
    let mut extract = exec::command("dpkg-deb")?;
    extract.arg("--extract").arg(package).arg(half);
    exec::output(extract)?;
    let kernel = Kernel::unpacked(half)?;
    let mut depmod = exec::command("depmod")?;
    depmod.arg("--basedir").arg(half).arg(&kernel.release);
    exec::output(depmod)?;
    fs::rename(half, root).map_err(LabError::io(format!("moving {}", half.display())))?;
    fs::remove_file(package).map_err(LabError::io(format!("removing {}", package.display())))
}

/// The package of a series with the highest version, among all names of packages.
fn newest<'a>(names: impl Iterator<Item = &'a str>, series: &str, architecture: &str) -> Option<String> {
    let prefix = format!("linux-image-{series}.");
    let suffix = format!("-{architecture}");
    let version = |name: &'a str| {
        let version = name.strip_prefix(&prefix)?.strip_suffix(&suffix)?;
        // Others are for clouds or real time, unsigned, or for debugging.
        let is_plain = version.bytes().all(|byte| byte.is_ascii_digit() || b".+-debian~bpo".contains(&byte));
        let is_variant = ["cloud", "rt"].iter().any(|word| version.ends_with(word));
        (is_plain && !is_variant).then_some((version, name))
    };
    names.filter_map(version).max_by(|a, b| natural(a.0, b.0)).map(|(_, name)| name.to_owned())
}

/// Compares versions by their numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|it: char| !it.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_plain_kernel_of_a_series_is_taken() {
        let names = [
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-57-cloud-amd64",
            "linux-image-6.1.0-57-rt-amd64",
            "linux-image-6.1.0-58-amd64-unsigned",
            "linux-image-6.1.0-58-amd64-dbg",
            "linux-image-6.1.0-58-arm64",
            "linux-image-6.12-amd64",
            "linux-image-6.12.101+deb12-amd64",
            "linux-image-6.12.99+deb12-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.43+deb13-amd64",
        ];
        let newest = |series| newest(names.into_iter(), series, "amd64");
        assert_eq!(newest("6.1").as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest("6.12").as_deref(), Some("linux-image-6.12.101+deb12-amd64"));
        assert_eq!(newest("6.6"), None);
    }

    #[test]
    fn a_series_is_two_numbers() {
        assert!(is_series("6.1") && is_series("6.12"));
        for text in ["", "6", "6.", "6.1.0", "../6.1", "6.x", "-6.1"] {
            assert!(!is_series(text), "{text:?}");
        }
    }

    #[test]
    fn another_architecture_is_named() {
        assert_eq!(architecture("x86_64").unwrap(), "amd64");
        let error = architecture("aarch64").unwrap_err().to_string();
        assert!(error.contains("x86-64 alone") && error.contains("aarch64"), "{error}");
    }

    #[test]
    fn a_folder_without_a_kernel_is_named() {
        let empty = tempfile::tempdir().unwrap();
        fs::create_dir(empty.path().join("boot")).unwrap();
        let error = Kernel::unpacked(empty.path()).unwrap_err().to_string();
        assert!(error.starts_with("no kernel in ") && error.ends_with("/boot"), "{error}");
    }
}
