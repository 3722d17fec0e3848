//! Files as somebody who can write to their folder may leave them.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flannel_core::guarded::{self, Dir};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

const LIMIT: u64 = 1000;

/// A folder with one name of each kind, and a file outside of it.
fn folder() -> (TempDir, PathBuf) {
    let all = tempfile::tempdir().unwrap();
    let folder = all.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(all.path().join("outside"), "precious").unwrap();
    fs::write(folder.join("file"), "text").unwrap();
    fs::create_dir(folder.join("folder")).unwrap();
    symlink(all.path().join("outside"), folder.join("link")).unwrap();
    symlink(all.path().join("nowhere"), folder.join("dangling")).unwrap();
    symlink("folder", folder.join("folder-link")).unwrap();
    mkfifo(&folder.join("fifo"), Mode::S_IRWXU).unwrap();
    drop(std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap());
    File::create(folder.join("huge")).unwrap().set_len(3 << 30).unwrap();
    (all, folder)
}

fn refused<T: std::fmt::Debug>(result: io::Result<T>, why: &str) {
    let error = result.unwrap_err();
    assert!(
        error.kind() == io::ErrorKind::InvalidData && error.to_string().contains(why),
        "{error}, not {why}"
    );
}

#[test]
fn only_regular_files_of_a_limited_size_are_read_and_nothing_is_waited_for() {
    let (_all, folder) = folder();
    let dir = Dir::open(&folder).unwrap();
    for (name, why) in [
        ("folder", "not a regular file"),
        ("link", "symbolic link"),
        ("dangling", "symbolic link"),
        ("fifo", "not a regular file"),
        ("socket", "not a regular file"),
        ("huge", "larger than 1000 bytes"),
    ] {
        refused(dir.read(OsStr::new(name), LIMIT), why);
        refused(guarded::read(&folder.join(name), LIMIT), why);
        if name != "huge" {
            refused(dir.file_or_new(OsStr::new(name), 0o600), why);
        }
    }
    assert_eq!(dir.read(OsStr::new("file"), 4).unwrap(), b"text");
    refused(dir.read(OsStr::new("file"), 3), "larger than 3 bytes");
    assert_eq!(dir.read(OsStr::new("none"), LIMIT).unwrap_err().kind(), io::ErrorKind::NotFound);
    // A file whose size nobody knows before its end.
    refused(guarded::read(Path::new("/proc/self/maps"), 10), "larger than 10 bytes");
}

#[test]
fn links_are_followed_only_where_that_is_asked_for_and_nothing_else_changes() {
    let (_all, folder) = folder();
    assert_eq!(guarded::read_linked(&folder.join("link"), LIMIT).unwrap(), b"precious");
    for (name, why) in [("fifo", "not a regular file"), ("folder-link", "not a regular"), ("huge", "larger")]
    {
        refused(guarded::read_linked(&folder.join(name), LIMIT), why);
    }
    symlink("/dev/zero", folder.join("zero")).unwrap();
    refused(guarded::read_linked(&folder.join("zero"), LIMIT), "not a regular file");
    symlink("fifo", folder.join("fifo-link")).unwrap();
    refused(guarded::read_linked(&folder.join("fifo-link"), LIMIT), "not a regular file");
}

#[test]
fn what_is_made_is_made_here() {
    let (all, folder) = folder();
    let dir = Dir::open(&folder).unwrap();
    for name in ["file", "link", "dangling", "fifo", "folder"] {
        let error = dir.create(OsStr::new(name), 0o600).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{name}");
    }
    refused(dir.file_or_new(OsStr::new("dangling"), 0o600), "symbolic link");
    assert!(!all.path().join("nowhere").exists());
    for name in ["link", "dangling", "fifo", "file"] {
        let mut draft = dir.draft(".draft".into(), 0o640).unwrap();
        draft.file.write_all(name.as_bytes()).unwrap();
        let placed = draft.place(OsStr::new(name)).unwrap();
        assert!(dir.is_at(&placed, OsStr::new(name)));
        assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), name);
        assert_eq!(fs::symlink_metadata(folder.join(name)).unwrap().permissions().mode(), 0o100_640);
    }
    drop(dir.draft(".given-up".into(), 0o600).unwrap());
    assert!(!folder.join(".given-up").exists());
    assert_eq!(fs::read_to_string(all.path().join("outside")).unwrap(), "precious");
}

#[test]
fn a_folder_stays_the_one_that_was_opened() {
    let (all, folder) = folder();
    let dir = Dir::open(&folder).unwrap();
    fs::rename(&folder, all.path().join("moved")).unwrap();
    symlink("/etc", &folder).unwrap();
    dir.create(OsStr::new("new"), 0o600).unwrap();
    assert!(all.path().join("moved/new").exists());
    let mut names = dir.names().unwrap();
    names.sort();
    assert_eq!(names.len(), 9, "{names:?}");
    dir.dir(OsStr::new("folder")).unwrap();
    for name in ["folder-link", "file"] {
        let error = dir.dir(OsStr::new(name)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{name}: {error}");
    }
    assert!(dir.remove(OsStr::new("link")).unwrap() && !dir.remove(OsStr::new("link")).unwrap());
    assert!(all.path().join("outside").exists());
    assert!(dir.stat(OsStr::new("dangling")).unwrap().is_some_and(|stat| !stat.is_file));
}

#[test]
fn a_file_is_dated_by_its_file_system_or_as_is_said() {
    let (_all, folder) = folder();
    let file = Dir::open(&folder).unwrap().file(OsStr::new("file")).unwrap();
    let modified = || file.metadata().unwrap().modified().unwrap();
    guarded::touch(&file, Some(SystemTime::UNIX_EPOCH)).unwrap();
    assert_eq!(modified(), SystemTime::UNIX_EPOCH);
    guarded::touch(&file, None).unwrap();
    assert!(modified().elapsed().is_ok_and(|age| age.as_secs() < 60));
}

#[test]
fn says_who_else_can_write() {
    let (_all, folder) = folder();
    let others = |mode| {
        fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
        Dir::open(&folder).unwrap().others_who_write().unwrap()
    };
    for mode in [0o700, 0o755, 0o555, 0o1755] {
        assert_eq!(others(mode), None, "{mode:o}");
    }
    for (mode, who) in [(0o777, "everybody"), (0o1777, "everybody"), (0o775, "group"), (0o770, "group")] {
        assert!(others(mode).is_some_and(|text| text.contains(who)), "{mode:o}");
    }
}
