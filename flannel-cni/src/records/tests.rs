use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn attachment(container: &str, ifname: &str) -> Attachment {
    Attachment::new(container, ifname).unwrap()
}

fn config() -> Object {
    json!({"name": "n", "type": "bridge"}).as_object().cloned().unwrap()
}

fn records() -> (tempfile::TempDir, Records) {
    let folder = tempfile::tempdir().unwrap();
    let records = Records::new(&folder.path().join("a/b"));
    (folder, records)
}

fn names(records: &Records) -> Vec<String> {
    let entries = fs::read_dir(&records.folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const NOW: Duration = Duration::ZERO;

#[test]
fn a_record_is_where_upstream_has_it_and_as_upstream_writes_it() {
    let (_folder, records) = records();
    let saved = records.save(&attachment("c1", "eth0"), &config()).unwrap();
    records.save(&attachment("c1", "net1"), &config()).unwrap();
    assert_eq!(names(&records), ["c1", "c1:net1"]);
    assert_eq!(fs::read_to_string(&saved.path).unwrap(), r#"{"name":"n","type":"bridge"}"#);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&saved.path), mode(&records.folder)), (0o600, 0o700));
    assert_eq!(records.list().unwrap(), [attachment("c1", "eth0"), attachment("c1", "net1")]);
    saved.remove().unwrap();
    assert_eq!(names(&records), ["c1:net1"]);
}

#[test]
fn nothing_recorded_is_no_error() {
    let (_folder, records) = records();
    let nobody = attachment("c", "eth0");
    assert!(records.open(&nobody, NOW).unwrap().is_none() && records.peek(&nobody).unwrap().is_none());
    assert_eq!(records.list().unwrap(), []);
    records.remove_draft(&nobody);
}

#[test]
fn the_lock_lasts_as_long_as_any_copy_of_the_file() {
    let (_folder, records) = records();
    let c = attachment("c", "eth0");
    let mut saved = records.save(&c, &config()).unwrap();
    let stdin = saved.stdin().unwrap();
    drop(saved);
    assert_eq!(records.open(&c, NOW).unwrap_err().code, code::TRY_AGAIN);
    assert!(records.peek(&c).unwrap().is_some());
    drop(stdin);
    assert_eq!(records.open(&c, NOW).unwrap().unwrap().config().unwrap(), config());
}

#[test]
fn whoever_waited_sees_what_is_there_then() {
    let (_folder, records) = records();
    let c = attachment("c", "eth0");
    let first = records.save(&c, &config()).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| records.open(&c, Duration::from_secs(60)).unwrap().is_none());
        // Whether it already waits or comes later, the answer is the same.
        std::thread::yield_now();
        let path = first.path.clone();
        fs::remove_file(path).unwrap();
        drop(first);
        assert!(waiting.join().unwrap());
    });
}

#[test]
fn one_that_was_replaced_is_not_removed() {
    let (_folder, records) = records();
    let c = attachment("c", "eth0");
    let old = records.save(&c, &config()).unwrap();
    records.save(&c, &config()).unwrap();
    old.remove().unwrap();
    assert_eq!(names(&records), ["c"]);
}

#[test]
fn drafts_of_the_dead_are_removed_and_found() {
    let (_folder, records) = records();
    let (c, net1) = (attachment("c", "eth0"), attachment("c", "net1"));
    records.save(&c, &config()).unwrap().remove().unwrap();
    for draft in [&c, &net1].map(Records::draft) {
        fs::write(records.folder.join(draft), "{").unwrap();
    }
    fs::write(records.folder.join("no container"), "").unwrap();
    assert_eq!(records.list().unwrap(), [c.clone(), net1.clone()]);
    let at_work = File::open(records.folder.join(Records::draft(&net1))).unwrap();
    at_work.lock().unwrap();
    records.remove_draft(&c);
    records.remove_draft(&net1);
    assert_eq!(names(&records), [".c:net1.tmp", "no container"]);
}

#[test]
fn upstreams_record_of_another_interface_is_found_by_the_container() {
    let (_folder, records) = records();
    records.save(&attachment("c", "eth0"), &config()).unwrap();
    let found = |ifname| records.upstreams(&attachment("c", ifname), NOW).unwrap().is_some();
    assert!(found("net1") && !found("eth0"));
}

#[test]
fn garbage_is_an_error_that_names_the_file() {
    let (_folder, records) = records();
    let c = attachment("c", "eth0");
    records.save(&c, &config()).unwrap();
    for garbage in ["", "{", "[]", "{}", r#"{"name":"n"}"#, r#"{"name":"n","type":7}"#, "\u{0}\u{0}"] {
        fs::write(records.path(&c), garbage).unwrap();
        let error = records.open(&c, NOW).unwrap().unwrap().config().unwrap_err();
        let path = records.path(&c).display().to_string();
        assert!(error.code == code::BAD_RECORD && error.details.contains(&format!("`rm {path}`")), "{error}");
    }
}

/// What somebody who can write to the folder may have put there: ADD writes through no link and waits for nobody.
#[test]
fn a_draft_that_is_a_link_or_a_fifo_is_replaced() {
    let (folder, records) = records();
    let c = attachment("c", "eth0");
    records.save(&c, &config()).unwrap().remove().unwrap();
    let (victim, missing) = (folder.path().join("victim"), folder.path().join("missing"));
    fs::write(&victim, "precious").unwrap();
    let draft = records.folder.join(Records::draft(&c));
    for target in [&victim, &missing] {
        std::os::unix::fs::symlink(target, &draft).unwrap();
        let mut saved = records.save(&c, &config()).unwrap();
        assert!(fs::symlink_metadata(records.path(&c)).unwrap().is_file());
        assert_eq!(saved.config().unwrap(), config());
    }
    nix::unistd::mkfifo(&draft, nix::sys::stat::Mode::S_IRWXU).unwrap();
    records.remove_draft(&c);
    assert_eq!(names(&records), ["c"]);
    nix::unistd::mkfifo(&draft, nix::sys::stat::Mode::S_IRWXU).unwrap();
    records.save(&c, &config()).unwrap();
    assert_eq!(names(&records), ["c"]);
    assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
    assert!(!missing.exists());
}

#[test]
fn a_record_that_is_no_file_or_huge_is_damaged() {
    let (folder, records) = records();
    let c = attachment("c", "eth0");
    records.save(&c, &config()).unwrap().remove().unwrap();
    let (path, victim) = (records.path(&c), folder.path().join("victim"));
    fs::write(&victim, r#"{"name":"n","type":"bridge"}"#).unwrap();
    let damaged = |why: &str| {
        let opened = records.open(&c, NOW).and_then(|record| record.unwrap().config());
        let error = opened.unwrap_err();
        assert!(error.code == code::BAD_RECORD && error.msg.contains(why), "{error}");
        fs::remove_file(&path).unwrap();
    };
    std::os::unix::fs::symlink(&victim, &path).unwrap();
    damaged("symbolic link");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    damaged("not a regular file");
    File::create(&path).unwrap().set_len(3 << 30).unwrap();
    damaged("larger than 1048576 bytes");
}

#[test]
fn a_folder_that_can_not_be_is_an_error() {
    let records = Records::new(Path::new("/proc/none"));
    let error = records.save(&attachment("c", "eth0"), &config()).unwrap_err();
    assert!(error.code == code::IO && error.msg.contains("/proc/none/c"), "{error}");
}

proptest! {
    #[test]
    fn names_of_files_and_attachments_are_one_to_one(
        container in "[a-z0-9][a-z0-9._-]{0,6}", ifname in "eth0|[a-z0-9.@-]{1,8}",
    ) {
        if let Ok(attachment) = Attachment::new(&container, &ifname) {
            prop_assert_eq!(attachment_of(&file_name(&attachment)), Some(attachment.clone()));
            prop_assert_eq!(attachment_of(&format!(".{}.tmp", file_name(&attachment))), Some(attachment));
        }
    }

    #[test]
    fn any_bytes_are_a_record_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = parse(&bytes);
    }
}
