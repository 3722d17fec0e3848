//! Files that are whole at any moment.

use std::fs::DirBuilder;
use std::io::{self, Write as _};
use std::iter::repeat_with;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::guarded::{Dir, Draft};

/// Puts a file in place: written beside it, synced, renamed, and the folder synced. A crash at any point
/// leaves the old file or the new one, never a part. Folders that are missing are made. What has the name, be it a
/// link, is replaced and never written through.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    let (dir, name) = Dir::of(path)?;
    let mut draft = beside(&dir, &name.to_string_lossy(), mode)?;
    draft.file.write_all(bytes)?;
    draft.place(name)?;
    Ok(())
}

/// A file with a name of its own beside one that is to be: `.<name>.<six letters and digits>`.
pub(crate) fn beside<'a>(dir: &'a Dir, name: &str, mode: u32) -> io::Result<Draft<'a>> {
    loop {
        let letters: String = repeat_with(fastrand::alphanumeric).take(6).collect();
        match dir.draft(format!(".{name}.{letters}").into(), mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created,
        }
    }
}
