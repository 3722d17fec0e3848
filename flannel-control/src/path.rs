//! How the socket is named to the kernel.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// An open folder. A socket address has room for 107 bytes of path (`unix(7)`), so sockets in the folder are named by its
/// descriptor, however long its own path is.
#[derive(Debug)]
pub(crate) struct Folder(File);

impl Folder {
    /// Opens the folder of a file, and returns the name of the file in it.
    pub(crate) fn of(path: &Path) -> io::Result<(Self, &OsStr)> {
        let unnamed = || io::Error::new(io::ErrorKind::InvalidInput, "its path has no file name");
        let name = path.file_name().ok_or_else(unnamed)?;
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        Ok((Self(File::options().read(true).custom_flags(flags).open(folder)?), name))
    }

    /// A short path of a name in the folder, for as long as this value lives.
    pub(crate) fn path(&self, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd").join(self.0.as_raw_fd().to_string()).join(name)
    }
}
