//! Each check fails where something is wrong, and passes where it is not: on the real kernel in namespaces where the kernel
//! is asked, on folders of files where those are read, and with stores that say what a test tells them.

mod agents;
mod bundle;
mod cni;
mod common;
mod denied;
mod files;
mod host;
mod kernel;
mod keys;
mod link;
mod nodes;
mod stores;
mod two_agents;

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
    let (text, _) = text.split_once("\n## ").unwrap();
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

/// docs/doctor.md says of every check what part it has in readiness, and names a test of whole clusters that shows it.
#[test]
fn the_document_says_what_is_readiness() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs/doctor.md")).unwrap();
    let (_, text) = text.split_once("\n## Readiness\n").unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix('|'));
    let rows: Vec<[&str; 3]> =
        rows.map(|row| row.split('|').collect::<Vec<_>>().try_into().unwrap()).collect();
    let names: Vec<&str> = rows.iter().map(|[name, ..]| name.trim().trim_end_matches('`')).collect();
    assert_eq!(names, CHECKS.iter().map(|check| check.name).collect::<Vec<_>>());
    let tests = sources(&root.join("flannel-bin/tests/cluster"));
    for [name, part, shown] in rows {
        let (part, shown) = (part.trim(), shown.trim().trim_matches('`'));
        if part.starts_with("red") {
            assert!(tests.contains(&format!("fn {shown}")), "{name}: there is no test {shown}");
        } else {
            assert!(part.starts_with("none: ") && shown.is_empty(), "{name}: {part}");
        }
    }
}

/// All sources of a folder and those below it.
fn sources(folder: &Path) -> String {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| if path.is_dir() { sources(&path) } else { fs::read_to_string(path).unwrap() })
        .collect()
}
