//! `flanneld open-run`: what an agent of root left in `/run` is opened to root's group, which an agent that runs as a user is in.
//!
//! The image that has nothing but the agent has no `find` and no `chmod` for that.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::OpenRunOptions;

/// What the agent writes, and the lock that all programs of iptables' legacy variant share.
const USUAL: [&str; 2] = ["/run/flannel", "/run/xtables.lock"];
/// Read and write, and search a folder or execute, for the group.
const GROUP: u32 = 0o060;
const GROUP_SEARCH: u32 = 0o010;

/// Does it, and tells the operator what it can't.
pub(crate) fn main(options: &OpenRunOptions) -> ExitCode {
    let usual = || USUAL.iter().map(PathBuf::from).collect();
    let paths: Vec<PathBuf> = if options.path.is_empty() { usual() } else { options.path.clone() };
    let mut code = ExitCode::SUCCESS;
    for path in paths {
        if let Err((path, error)) = open(&path) {
            let _ = writeln!(io::stderr(), "flanneld open-run: {}: {error}", path.display());
            code = ExitCode::FAILURE;
        }
    }
    code
}

/// Opens a file, or a folder and all in it. Links are not followed, and what belongs to others stays as it is.
fn open(path: &Path) -> Result<(), (PathBuf, io::Error)> {
    let failed = |error| (path.to_owned(), error);
    let kind = fs::symlink_metadata(path).map_err(failed)?.file_type();
    // A socket is made anew at each start.
    if !(kind.is_dir() || kind.is_file()) || kind.is_socket() {
        return Ok(());
    }
    // Whatever replaces it meanwhile is not followed either.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    let searches = metadata.is_dir() || mode & 0o111 != 0;
    let wanted = mode | GROUP | if searches { GROUP_SEARCH } else { 0 };
    if metadata.uid() == 0 && wanted != mode {
        file.set_permissions(fs::Permissions::from_mode(wanted)).map_err(failed)?;
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path).map_err(failed)? {
            open(&entry.map_err(failed)?.path())?;
        }
    }
    Ok(())
}
