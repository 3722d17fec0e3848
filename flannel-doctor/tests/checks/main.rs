//! Each check fails where something is wrong, and passes where it is not: on the real kernel in namespaces where the kernel
//! is asked, on folders of files where those are read, and with stores that say what a test tells them.

mod agents;
mod bundle;
mod cni;
mod common;
mod files;
mod host;
mod kernel;
mod link;
mod nodes;
mod stores;

use std::fs;
use std::path::Path;

use flannel_doctor::CHECKS;

/// Every check has a test that makes it fail and one that makes it pass.
#[test]
fn every_check_is_seen_to_fail_and_to_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checks");
    let files = fs::read_dir(folder).unwrap().map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    let text: String = files.collect::<String>().split_whitespace().collect();
    for check in CHECKS {
        for how in ["passes", "fails"] {
            let call = format!(".{how}(\"{}\"", check.name);
            assert!(text.contains(&call), "no test calls {call}..)");
        }
    }
}

/// docs/doctor.md has one row for each check, with the words of the code.
#[test]
fn the_document_has_every_check() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/doctor.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, text) = text.split_once("\n## Checks\n").unwrap();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    let want: Vec<String> = CHECKS
        .iter()
        .map(|check| format!("| `{}` | {} | {} |", check.name, check.asks, check.remedy))
        .collect();
    for (row, want) in rows.iter().zip(&want) {
        assert_eq!(row, want);
    }
    assert_eq!(rows.len(), want.len(), "docs/doctor.md should have:\n{}", want.join("\n"));
}
