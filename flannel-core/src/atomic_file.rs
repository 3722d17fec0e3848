//! Replaces files atomically: a reader sees the old file or the new one, never a part.
//!
//! The library and the CNI plugin both compile this file, by a link, as `guarded.rs`.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, FileType, TryLockError};
use std::io::{self, Write as _};
use std::iter::repeat_with;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt as _};
use std::path::Path;

use crate::guarded::{Dir, Draft};

/// The number of letters and digits at the end of a draft's name.
const LETTERS: usize = 6;

/// How many bytes are written at once.
const PIECE: usize = 16 << 10;

/// How many drafts are created at most until one is known to be there and locked.
const TRIES: usize = 8;

/// Replaces a file: writes a draft beside it, syncs it, renames it, and syncs the folder. A crash at any point leaves
/// the old file or the new one, never a part. The folder must exist, so that a misspelt path is an error; see
/// [`make_folder_of`]. If the name is a link, the link is replaced, and its target is not written to. A device node, such
/// as `/dev/null`, is not replaced: that is an error.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace_with(path, mode, &mut |draft| draft.write_all(bytes))
}

/// The same for content that is written piece by piece, so that it need not be in memory as a whole.
pub fn replace_with(
    path: &Path,
    mode: u32,
    fill: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>,
) -> io::Result<()> {
    refuse_device(path)?;
    // A draft that can't be removed does no harm, since each draft has a name of its own.
    let _ = remove_abandoned_drafts(path);
    let (dir, name) = Dir::of(path)?;
    let draft = locked(&dir, &name.to_string_lossy(), mode)?;
    let mut pieces = io::BufWriter::with_capacity(PIECE, &draft.file);
    fill(&mut pieces)?;
    pieces.flush()?;
    drop(pieces);
    draft.place(name)?;
    Ok(())
}

/// Somebody who can make a device node in the folder is root, so it is no trap, but a misspelt or ill-chosen path.
fn refuse_device(path: &Path) -> io::Result<()> {
    let is_device = |kind: FileType| kind.is_char_device() || kind.is_block_device();
    match fs::symlink_metadata(path) {
        Ok(found) if is_device(found.file_type()) => {
            Err(io::Error::other("it is a device node, which stays"))
        }
        _ => Ok(()),
    }
}

/// Makes the missing folders above a file, with mode 0755: for files of which the program itself chooses the place.
pub fn make_folder_of(path: &Path) -> io::Result<()> {
    match path.parent().filter(|folder| *folder != Path::new("")) {
        Some(folder) => DirBuilder::new().recursive(true).mode(0o755).create(folder),
        None => Ok(()),
    }
}

/// Removes the drafts that killed processes left beside a file in the middle of [`replace`]. The draft of a living
/// process stays: the process has it locked, and the kernel releases a lock with its process (`flock(2)`).
pub fn remove_abandoned_drafts(path: &Path) -> io::Result<()> {
    let (dir, file) = match Dir::of(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let file = file.to_string_lossy();
    for name in dir.names()?.into_iter().filter(|name| is_draft(name, &file)) {
        // The draft may have been renamed since the folder was listed.
        if let Ok(draft) = dir.file(&name)
            && draft.try_lock().is_ok()
            && dir.is_at(&draft, &name)
        {
            dir.remove(&name)?;
        }
    }
    Ok(())
}

/// Creates a draft beside a file, with the name `.<name>.<six letters and digits>`.
pub(crate) fn beside<'a>(dir: &'a Dir, name: &str, mode: u32) -> io::Result<Draft<'a>> {
    loop {
        let letters: String = repeat_with(fastrand::alphanumeric).take(LETTERS).collect();
        match dir.draft(format!(".{name}.{letters}").into(), mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created,
        }
    }
}

/// Creates a locked draft, which [`remove_abandoned_drafts`] of another process leaves alone.
fn locked<'a>(dir: &'a Dir, name: &str, mode: u32) -> io::Result<Draft<'a>> {
    for _ in 0..TRIES {
        let draft = beside(dir, name, mode)?;
        // Another process may have taken the draft for an abandoned one before it was locked. On a file system without
        // locks no process can lock it, and so none removes it.
        let is_taken = matches!(draft.file.try_lock(), Err(TryLockError::WouldBlock));
        if !is_taken && draft.is_there() {
            return Ok(draft);
        }
    }
    // A file system whose inode numbers change shows no draft as the file that was opened.
    beside(dir, name, mode)
}

/// Whether a name has the form of the drafts that [`beside`] makes for a file.
fn is_draft(name: &OsStr, file: &str) -> bool {
    let name = name.to_string_lossy();
    let letters =
        name.strip_prefix('.').and_then(|name| name.strip_prefix(file)).and_then(|end| end.strip_prefix('.'));
    letters.is_some_and(|letters| {
        letters.len() == LETTERS && letters.bytes().all(|letter| letter.is_ascii_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn abandoned_drafts_of_one_file_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");
        // A process that is killed runs no destructors.
        let abandon = |name: &str| {
            let (dir, _) = Dir::of(&path).unwrap();
            let mut draft = beside(&dir, name, 0o600).unwrap();
            draft.file.write_all(b"half a fi").unwrap();
            draft.abandon();
        };
        abandon("subnet.env");
        abandon("subnet.env");
        abandon("subnet.env.state");
        for name in [".subnet.env.lock", ".subnet.env.a-link", ".subnet.env", "subnet.env.abcdef"] {
            fs::write(folder.path().join(name), "somebody else's").unwrap();
        }
        std::os::unix::fs::symlink("nowhere", folder.path().join(".subnet.env.linked")).unwrap();

        let (dir, _) = Dir::of(&path).unwrap();
        let living = locked(&dir, "subnet.env", 0o600).unwrap();
        remove_abandoned_drafts(&path).unwrap();
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            4 + 1 + 1 + 1,
            "four files, a link, two drafts"
        );
        living.place(OsStr::new("subnet.env")).unwrap();

        remove_abandoned_drafts(&folder.path().join("subnet.env.state")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4 + 1 + 1);
        remove_abandoned_drafts(&folder.path().join("none/subnet.env")).unwrap();

        abandon("subnet.env");
        let elsewhere = folder.path().join("run/flannel/subnet.env");
        assert_eq!(replace(&elsewhere, b"", 0o600).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!folder.path().join("run").exists(), "a misspelt path makes nothing");
        make_folder_of(&elsewhere).unwrap();
        replace(&elsewhere, b"", 0o600).unwrap();
        fs::remove_dir_all(folder.path().join("run")).unwrap();
        make_folder_of(Path::new("subnet.env")).unwrap();

        replace(&path, b"whole", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert!(refuse_device(Path::new("/dev/null")).is_err());
        refuse_device(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4 + 1 + 1);
    }
}
