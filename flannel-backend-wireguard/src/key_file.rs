//! The file with this node's private key, in the form of Go flannel: base64 without a newline, readable for its owner
//! alone. Upstream: `pkg/backend/wireguard/device.go`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flannel_core::{atomic_file, guarded};
use nix::errno::Errno;
use nix::unistd::geteuid;

use crate::key::{KeyError, PrivateKey};

/// Where Go flannel has the key if `WIREGUARD_KEY_FILE` does not say.
pub const DEFAULT_PATH: &str = "/run/flannel/wgkey";

/// Go's mode.
const MODE: u32 = 0o400;
/// A key with its newline has 45 bytes.
const MAX_BYTES: u64 = 1024;
/// As many links as the kernel follows (`MAXSYMLINKS`, `path_resolution(7)`).
const MOST_LINKS: usize = 40;

/// The key can't be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file can't be read.
    #[error("can't read the WireGuard key file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its content is no key. It is left as it is: a new key would end the sessions of this node with all peers.
    #[error("the content of the WireGuard key file {path} {why}; restore it, or remove it to get a new key")]
    NoKey {
        /// The file.
        path: PathBuf,
        /// Why not. The text has it, so that it is no source.
        why: KeyError,
    },
    /// No new key can be drawn.
    #[error("can't draw a WireGuard key")]
    Draw(#[source] io::Error),
    /// A new key can't be written.
    #[error("can't write the WireGuard key file {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file with a key can't be removed.
    #[error("can't remove the WireGuard key file {path}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Reads the key; draws and writes one if there is no file.
pub fn read_or_create(path: &Path) -> Result<PrivateKey, KeyFileError> {
    match read(path)? {
        Some(key) => Ok(key),
        None => create(path),
    }
}

/// Reads the key; `None` if there is no file. A link is followed: Kubernetes projects secrets as links.
pub fn read(path: &Path) -> Result<Option<PrivateKey>, KeyFileError> {
    let at = || path.to_owned();
    let bytes = match guarded::read_linked(path, MAX_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.and_then(guarded::text).map_err(|source| KeyFileError::Read { path: at(), source })?,
    };
    let key = bytes.trim_end_matches(['\r', '\n']).parse();
    key.map(Some).map_err(|why| KeyFileError::NoKey { path: at(), why })
}

/// The public key of a file's content, in base64. The error does not show the content.
pub(crate) fn public_key_of(text: &str) -> Result<String, String> {
    let key: Result<PrivateKey, KeyError> = text.trim_end_matches(['\r', '\n']).parse();
    key.map(|key| key.public().to_string()).map_err(|error| error.to_string())
}

/// Draws a new key and puts it into the file, in place of one that is there.
pub fn create(path: &Path) -> Result<PrivateKey, KeyFileError> {
    let key = PrivateKey::generate().map_err(KeyFileError::Draw)?;
    write(path, &key)?;
    Ok(key)
}

/// Puts a key into the file, in place of one that is there. A crash leaves the one or the other. A link stays, and its target
/// is written, be it there or not; but a link of another user than root and this process's is replaced, since it could lead
/// to any file of the host.
pub fn write(path: &Path, key: &PrivateKey) -> Result<(), KeyFileError> {
    let written = behind_links(path).and_then(|target| {
        atomic_file::make_folder_of(&target)?;
        atomic_file::replace(&target, key.reveal().as_bytes(), MODE)
    });
    written.map_err(|source| KeyFileError::Write { path: path.to_owned(), source })
}

/// The file at the end of a chain of links.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let trusted = |link: &fs::Metadata| link.is_symlink() && is_trusted(link.uid());
        // What can't be seen is not there, or can't be written either.
        if !fs::symlink_metadata(&path).is_ok_and(|found| trusted(&found)) {
            return Ok(path);
        }
        let target = fs::read_link(&path)?;
        path = path.parent().map_or_else(|| target.clone(), |folder| folder.join(&target));
    }
    Err(Errno::ELOOP.into())
}

/// Whether a user can do what this process can: root, and its own.
fn is_trusted(user: u32) -> bool {
    user == 0 || user == geteuid().as_raw()
}

/// Who can use the key besides this process and root, and what to do against it; `None` if nobody can, or that can't be seen.
pub fn exposure(path: &Path) -> Option<String> {
    let found = fs::metadata(path).ok()?;
    let mode = found.mode() & 0o7777;
    if !is_trusted(found.uid()) {
        let (owner, own) = (found.uid(), geteuid());
        return Some(format!(
            "it belongs to the user {owner}, who can read and replace it: `chown {own}` and `chmod 0400` it"
        ));
    }
    (mode & 0o077 != 0).then(|| {
        format!(
            "others than its owner can use it (mode {mode:04o}): `chmod 0400` it, and if others may have read it, \
             `flanneld rotate-key`"
        )
    })
}

/// The file beside a key file that has the next key while the node changes its key: `wgkey.next`.
pub fn next_to(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

/// Removes a file with a key. One that is not there is no error.
pub fn remove(path: &Path) -> Result<(), KeyFileError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(KeyFileError::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// How long ago the key was put into the file; `None` if that can't be read, or is in the future.
pub fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).ok()?.modified().ok()?.elapsed().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};

    use super::*;

    #[test]
    fn a_new_key_has_gos_form_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/wgkey");
        let key = read_or_create(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!((text.len(), text.trim_end()), (44, text.as_str()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o400);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(read_or_create(&path).unwrap(), key);
        assert_ne!(create(&path).unwrap(), key, "another one in its place");
    }

    #[test]
    fn the_next_key_is_beside_it_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wgkey");
        let next = next_to(&path);
        assert_eq!(next, folder.path().join("wgkey.next"));
        remove(&next).unwrap();
        let key = create(&next).unwrap();
        write(&path, &key).unwrap();
        assert_eq!(read(&path).unwrap(), Some(key));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o400);
        assert!(age(&path).unwrap() < Duration::from_secs(3600));
        remove(&next).unwrap();
        assert_eq!((read(&next).unwrap(), age(&next)), (None, None));
        assert!(matches!(remove(folder.path()), Err(KeyFileError::Remove { .. })));
    }

    #[test]
    fn what_go_and_people_write_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wgkey");
        let key = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        for end in ["", "\n", "\r\n"] {
            fs::write(&path, format!("{key}{end}")).unwrap();
            assert_eq!(read(&path).unwrap(), Some(key.parse().unwrap()));
        }
        let link = folder.path().join("projected");
        symlink(&path, &link).unwrap();
        assert_eq!(read(&link).unwrap(), Some(key.parse().unwrap()));
    }

    #[test]
    fn a_link_stays_and_its_target_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("run")).unwrap();
        let (link, target) = (at("run/wgkey"), at("etc/key"));
        symlink("../between", &link).unwrap();
        symlink(&target, at("between")).unwrap();
        // The target is not there yet, as its folder.
        let first = read_or_create(&link).unwrap();
        let second = create(&link).unwrap();
        assert_ne!(first, second);
        assert_eq!((read(&link).unwrap(), read(&target).unwrap()), (Some(second.clone()), Some(second)));
        assert!(link.is_symlink() && at("between").is_symlink() && !target.is_symlink());
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o400);
        symlink("loop", at("loop")).unwrap();
        assert!(matches!(create(&at("loop")), Err(KeyFileError::Write { .. })));
        // That of somebody else does not lead us anywhere.
        symlink(&target, at("foreign")).unwrap();
        lchown(at("foreign"), Some(1234), None).unwrap();
        let third = create(&at("foreign")).unwrap();
        assert!(!at("foreign").is_symlink());
        assert_ne!(read(&target).unwrap(), Some(third));
    }

    #[test]
    fn a_key_for_others_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wgkey");
        assert_eq!(exposure(&path), None);
        create(&path).unwrap();
        assert_eq!(exposure(&path), None);
        let says = |mode: u32, text: &str| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let said = exposure(&path).unwrap();
            assert!(said.contains(text) && said.contains("`chmod 0400`"), "{said}");
        };
        says(0o440, "mode 0440");
        says(0o602, "mode 0602");
        chown(&path, Some(1234), None).unwrap();
        says(0o400, "belongs to the user 1234");
    }

    #[test]
    fn a_file_without_a_key_is_named_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wgkey");
        for content in ["", "secret", "AAAA", "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo= x"] {
            fs::write(&path, content).unwrap();
            let error = read_or_create(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::NoKey { .. }), "{error}");
            assert_eq!(flannel_core::error::chain(&error), error.to_string(), "said once");
            assert!(error.to_string().contains("wgkey") && !error.to_string().contains("secret"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        fs::write(&path, [0xff; 44]).unwrap();
        assert!(matches!(read(&path), Err(KeyFileError::Read { .. })));
        let error = create(Path::new("/proc/none/wgkey")).unwrap_err();
        assert!(matches!(error, KeyFileError::Write { .. }), "{error}");
    }
}
