//! The listening socket: how it comes to its path, and how it goes.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Type};
use tokio::net::{UnixListener, UnixStream};

use crate::path::Folder;

/// Owner and group may connect, which takes the right to write.
const MODE: u32 = 0o660;

/// How many connections the kernel keeps until they are accepted.
const BACKLOG: i32 = 64;

/// The socket can't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another agent serves it.
    #[error("another agent serves {}", .0.display())]
    Taken(PathBuf),
    /// Something else has its path.
    #[error("{} is there and is no socket, so it stays", .0.display())]
    NoSocket(PathBuf),
    /// The system refused.
    #[error("can't make the control socket {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A socket that listens at a path, and is removed with this value.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    folder: Folder,
    name: OsString,
    /// Device and inode of the socket's file, by which it is told from a later one.
    file: (u64, u64),
}

impl Socket {
    /// Makes the socket under a name of its own, and gives it its name when it is complete: a client never meets one with
    /// wrong rights, or one that does not listen yet.
    pub(super) fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |source| BindError::Io { path: path.to_owned(), source };
        if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
            DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
        }
        let (folder, name) = Folder::of(path).map_err(failed)?;
        let at = folder.path(name);
        match occupant(&at).map_err(failed)? {
            Occupant::Agent => return Err(BindError::Taken(path.to_owned())),
            Occupant::NoSocket => return Err(BindError::NoSocket(path.to_owned())),
            Occupant::Nobody => {}
        }
        let draft = folder.path(&draft_name(name));
        let made = listen(&draft).and_then(|listener| {
            fs::set_permissions(&draft, fs::Permissions::from_mode(MODE))?;
            let made = fs::symlink_metadata(&draft)?;
            fs::rename(&draft, &at)?;
            Ok((listener, (made.dev(), made.ino())))
        });
        let (listener, file) = made.map_err(|error| {
            // It may not exist, and nothing more can be done about it.
            let _ = fs::remove_file(&draft);
            failed(error)
        })?;
        remove_abandoned_drafts(&folder, name);
        Ok(Self { listener, file, name: name.to_owned(), folder })
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let path = self.folder.path(&self.name);
        let is_ours = fs::symlink_metadata(&path).is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if is_ours {
            let _ = fs::remove_file(&path);
        }
    }
}

fn draft_name(name: &OsStr) -> OsString {
    let mut draft = draft_prefix(name);
    draft.push(std::process::id().to_string());
    draft
}

fn draft_prefix(name: &OsStr) -> OsString {
    let mut draft = OsString::from(".");
    draft.push(name);
    draft.push(".");
    draft
}

/// Removes the sockets of runs that were killed before they gave them their name. It may fail: they are in nobody's way.
fn remove_abandoned_drafts(folder: &Folder, name: &OsStr) {
    let prefix = draft_prefix(name);
    let is_draft = |name: &OsStr| {
        let process = name.as_bytes().strip_prefix(prefix.as_bytes());
        process.is_some_and(|id| !id.is_empty() && id.iter().all(u8::is_ascii_digit))
    };
    for entry in fs::read_dir(folder.path(OsStr::new("."))).into_iter().flatten().flatten() {
        let path = folder.path(&entry.file_name());
        if is_draft(&entry.file_name()) && matches!(occupant(&path), Ok(Occupant::Nobody)) {
            let _ = fs::remove_file(path);
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    // A run that was killed in just this place, and had this process id, left it.
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        _ => {}
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
    // `bind` gives the file the mode of the socket, less the umask, so nobody else can connect at any moment.
    fchmod(socket.as_fd(), Mode::from_bits_truncate(MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    UnixListener::from_std(socket.into())
}

/// Who has a path.
enum Occupant {
    /// Nobody, or a socket at which nobody listens any more.
    Nobody,
    /// A socket at which somebody listens.
    Agent,
    /// Something that is no socket.
    NoSocket,
}

fn occupant(path: &Path) -> io::Result<Occupant> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Ok(Occupant::NoSocket),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nobody),
        Err(error) => return Err(error),
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(Occupant::Agent),
        Err(error) => match error.raw_os_error() {
            Some(libc::ECONNREFUSED | libc::ENOENT) => Ok(Occupant::Nobody),
            // Its queue is full: it listens, but does not accept just now.
            Some(libc::EAGAIN) => Ok(Occupant::Agent),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdStream;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced_and_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/subnet.env.sock");
        let first = Socket::bind(&path).unwrap();
        assert_eq!(mode(&path), MODE);
        assert!(matches!(Socket::bind(&path), Err(BindError::Taken(_))));
        StdStream::connect(&path).unwrap();
        // What a killed agent leaves.
        let dead = folder.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        for draft in [".dead.sock.4194305", ".dead.sock.x", ".dead.sock.7.7"] {
            drop(std::os::unix::net::UnixListener::bind(folder.path().join(draft)).unwrap());
        }
        let living =
            std::os::unix::net::UnixListener::bind(folder.path().join(".dead.sock.4194306")).unwrap();
        let second = Socket::bind(&dead).unwrap();
        assert!(!folder.path().join(".dead.sock.4194305").exists(), "nobody gives it its name any more");
        for other in [".dead.sock.4194306", ".dead.sock.x", ".dead.sock.7.7"] {
            assert!(folder.path().join(other).exists(), "{other}");
        }
        drop(living);
        StdStream::connect(&dead).unwrap();
        drop((first, second));
        assert!(!path.exists() && !dead.exists());
        assert_eq!(fs::read_dir(folder.path().join("run")).unwrap().count(), 0, "no draft is left");
    }

    #[tokio::test]
    async fn a_socket_that_came_later_stays_and_so_does_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let old = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let new = Socket::bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
        drop(new);
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::bind(&path), Err(BindError::NoSocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_path_of_any_length_will_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a".repeat(200)).join("subnet.env.sock");
        let _socket = Socket::bind(&path).unwrap();
        let answers = crate::Client::new(&path).follow(&crate::protocol::Request::new("status"));
        assert!(answers.is_ok(), "{answers:?}");
    }
}
