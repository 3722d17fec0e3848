//! Places of a publisher (a repository, a registry, a mail address) are where `docs/publishing.md` says, and nowhere else.

use std::collections::BTreeSet;
use std::path::Path;

use regex::Regex;

use super::{file, path};

/// What stands for the publisher's.
const PLACEHOLDERS: [&str; 2] = ["publisher@example.invalid", "registry.example.org/flannel"];

/// Owners of other software that is named.
const OTHERS: [&str; 5] = ["flannel-io", "containernetworking", "Masterminds", "xeipuuv", "rustsec"];

/// Documents that show commands with a placeholder, and this list.
const DOCUMENTS: [&str; 6] = [
    "docs/quick-start.md",
    "CHANGELOG.md",
    "README.md",
    "docs/kubernetes.md",
    "docs/publishing.md",
    "flannel-bin/tests/dist/publishing.rs",
];

/// The files of a folder and below, but for what is built, generated or fed to a fuzzer.
pub(crate) fn files(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (name, kind) = (entry.file_name(), entry.file_type().unwrap());
        if ["target", ".git", "fuzz", "golden", "Cargo.lock"].iter().any(|skipped| name == *skipped) {
            continue;
        }
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path().strip_prefix(path("")).unwrap().to_str().unwrap().to_owned());
        }
    }
}

/// The rows of the table: a file, and the placeholder that it has.
fn places() -> BTreeSet<(String, Option<String>)> {
    let row = Regex::new(r"(?m)^\| `([^`]+)` \| (?:`([^`]+)`|nothing) \|").unwrap();
    let text = file("docs/publishing.md");
    row.captures_iter(&text)
        .map(|row| (row[1].to_owned(), row.get(2).map(|it| it.as_str().to_owned())))
        .collect()
}

#[test]
fn a_publisher_is_named_where_the_document_says_and_nowhere_else() {
    let (places, mut all) = (places(), Vec::new());
    assert!(places.len() > 5, "{places:?}");
    for (name, placeholder) in &places {
        let text = file(name);
        let has = PLACEHOLDERS.into_iter().find(|it| text.contains(it));
        assert_eq!(has, placeholder.as_deref(), "{name}");
    }
    files(&path(""), &mut all);
    assert!(all.len() > 500, "{}", all.len());
    let owner =
        Regex::new(r"(?:github|gitlab|codeberg)\.(?:com|org)/([A-Za-z0-9_-]+)|ghcr\.io/|quay\.io/").unwrap();
    for name in all.iter().filter(|name| !DOCUMENTS.contains(&name.as_str())) {
        let Ok(text) = std::fs::read_to_string(path(name)) else { continue };
        if !places.iter().any(|(place, _)| place == name) && name != "flannel-bin/tests/dist/image.rs" {
            assert!(PLACEHOLDERS.iter().all(|it| !text.contains(it)), "{name} is not in docs/publishing.md");
        }
        for found in owner.captures_iter(&text) {
            let known = found.get(1).is_some_and(|owner| OTHERS.contains(&owner.as_str()));
            assert!(known, "{name} names {}, which nobody owns: docs/publishing.md", &found[0]);
        }
    }
}
