//! `docs/failure-modes.md` names the test of each fault, and each of these tests exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The names of all functions in the Rust files below a folder, and of the rows that a macro makes tests of.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    // Not every crate has both.
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names =
                text.lines().filter_map(|line| line.trim_start().rsplit_once("fn ")?.1.split('(').next());
            found.extend(names.map(str::to_owned));
            let rows = text.split("\non_store!(").nth(1).and_then(|rows| rows.split("\n);").next());
            let names = rows.into_iter().flat_map(str::lines).filter_map(|row| row.trim().split_once(": "));
            found.extend(names.map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn every_fault_has_its_tests_and_every_test_its_fault() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("docs/failure-modes.md")).unwrap();
    let (_, tests) = text.split_once("\n## Tests\n").expect("the section of the tests");
    let table = tests.lines().filter(|line| line.starts_with("| "));
    let named: BTreeSet<&str> = table.flat_map(|line| line.split('`').skip(1).step_by(2)).collect();
    assert!(named.len() > 30, "{named:?}");

    let mut functions_of_tests = BTreeSet::new();
    for entry in fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        if folder.file_name().unwrap().as_encoded_bytes().starts_with(b"flannel-") {
            for of in ["src", "tests"] {
                functions(&folder.join(of), &mut functions_of_tests);
            }
        }
    }
    let lost: Vec<_> = named.iter().filter(|name| !functions_of_tests.contains(**name)).collect();
    assert!(lost.is_empty(), "tests that are named and not there: {lost:?}");

    let faults = fs::read_to_string(root.join("flannel-store-etcd/tests/etcd/faults.rs")).unwrap();
    let tests = faults
        .split("#[tokio::test")
        .skip(1)
        .filter_map(|test| test.split("async fn ").nth(1)?.split('(').next());
    let untold: Vec<_> = tests.filter(|test| !named.contains(test)).collect();
    assert!(untold.is_empty(), "tests that the table lacks: {untold:?}");
}
