//! The documents: every link leads to something, the book has every chapter, and the reference of the network config has the keys
//! that the code reads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use flannel_backend_extension::ExtensionConfig;
use flannel_backend_ipip::IpipConfig;
use flannel_backend_udp::UdpConfig;
use flannel_backend_vxlan::VxlanConfig;
use flannel_backend_wireguard::WireguardConfig;
use flannel_core::config::{ConfigError, LeaseSource, NetworkConfig};
use flannel_doctor::{CHECKS, Check};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use regex::Regex;

use super::{file, path, publishing};

/// What a document has of interest.
#[derive(Default)]
struct Document {
    /// Where links within it can lead to.
    anchors: BTreeSet<String>,
    /// Where its links lead.
    links: Vec<String>,
}

impl Document {
    fn read(text: &str) -> Self {
        let (mut document, mut heading, mut seen) = (Self::default(), None::<String>, BTreeMap::new());
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let anchor = anchor(&heading.take().unwrap_or_default());
                    // A second heading of the same words gets a number.
                    let count: &mut usize = seen.entry(anchor.clone()).or_default();
                    let numbered = if *count > 0 { format!("{anchor}-{count}") } else { anchor };
                    *count += 1;
                    document.anchors.insert(numbered);
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push(dest_url.into_string());
                }
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        document
    }
}

/// The anchor of a heading, as code hosts and mdbook make it.
pub(crate) fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'));
    kept.map(|it| if it == ' ' { '-' } else { it.to_ascii_lowercase() }).collect()
}

/// The anchors of a document.
pub(crate) fn anchors(name: &str) -> BTreeSet<String> {
    Document::read(&file(name)).anchors
}

/// All documents of the repository by their paths.
fn documents() -> BTreeMap<String, Document> {
    let mut all = Vec::new();
    publishing::files(&path(""), &mut all);
    let is_document = |name: &&String| Path::new(name).extension().is_some_and(|it| it == "md");
    all.iter().filter(is_document).map(|name| (name.clone(), Document::read(&file(name)))).collect()
}

/// The path of a link from a document, from the top of the repository.
fn target(from: &str, link: &str) -> String {
    let mut parts = PathBuf::new();
    for part in Path::new(from).parent().unwrap().join(link).components() {
        match part {
            Component::ParentDir => assert!(parts.pop(), "{from}: {link} leaves the repository"),
            part => parts.push(part),
        }
    }
    parts.to_str().unwrap().to_owned()
}

#[test]
fn every_link_leads_somewhere() {
    let documents = documents();
    let mut bad = Vec::new();
    for (name, document) in &documents {
        for link in &document.links {
            if link.starts_with("https://") {
                continue;
            }
            let (to, anchor) = link.split_once('#').unwrap_or((link, ""));
            let to = if to.is_empty() { name.clone() } else { target(name, to) };
            let is_there = path(&to).exists() && !link.contains(':');
            let has_anchor = || documents.get(&to).is_some_and(|document| document.anchors.contains(anchor));
            if !is_there || !anchor.is_empty() && !has_anchor() {
                bad.push(format!("{name}: {link}"));
            }
        }
    }
    assert_eq!(bad, Vec::<String>::new());
    let links: usize = documents.values().map(|document| document.links.len()).sum();
    assert!(documents.len() > 30 && links > 100, "{links} links in {}", documents.len());
}

/// Code hosts show a picture in a page of any colour, and run nothing in it.
#[test]
fn every_picture_is_shown_and_needs_nothing_else() {
    let documents = documents();
    let shown: BTreeSet<String> = documents
        .iter()
        .flat_map(|(name, document)| document.links.iter().map(move |link| (name, link)))
        .filter(|(_, link)| !link.contains(':') && !link.starts_with('#'))
        .map(|(name, link)| target(name, link))
        .collect();
    let mut all = Vec::new();
    publishing::files(&path("docs/pictures"), &mut all);
    all.retain(|name| Path::new(name).extension().is_some_and(|it| it == "svg"));
    assert!(all.len() >= 4, "{all:?}");
    for name in &all {
        let picture = file(name);
        assert!(shown.contains(name), "no document shows {name}");
        assert!(
            picture.contains("<title>") && picture.contains(r#"<rect width="100%" height="100%""#),
            "{name}"
        );
        for word in ["<script", "<style", "href", "url(", "<!", "<foreignObject"] {
            assert!(!picture.contains(word), "{word} in {name}");
        }
    }
}

#[test]
fn the_book_has_every_document_once() {
    let summary = Document::read(&file("docs/SUMMARY.md"));
    let chapters: Vec<String> = summary.links.iter().map(|link| target("docs/SUMMARY.md", link)).collect();
    let unique: BTreeSet<&String> = chapters.iter().collect();
    assert_eq!(unique.len(), chapters.len(), "a chapter is there twice");
    let documents = documents();
    let is_of_book = |name: &&String| name.starts_with("docs/") && *name != "docs/SUMMARY.md";
    let missing: Vec<&String> =
        documents.keys().filter(is_of_book).filter(|name| !unique.contains(name)).collect();
    assert!(missing.is_empty(), "docs/SUMMARY.md lacks {missing:?}");
    // `docs/build` gives mdbook these files.
    for chapter in &chapters {
        assert!(documents.contains_key(chapter), "{chapter} is no document");
    }
}

#[test]
fn anchors_are_those_of_code_hosts() {
    let text = "# `\"Type\": \"host-gw\"`\n\n## A pod can't start\n\n## Twice\n\n## Twice\n\n```sh\n# no heading\n```\n[a](b.md#c)\n";
    let document = Document::read(text);
    let want = ["type-host-gw", "a-pod-cant-start", "twice", "twice-1"].map(str::to_owned);
    assert_eq!(document.anchors, BTreeSet::from(want));
    assert_eq!(document.links, ["b.md#c"]);
}

/// The keys in the first column of the table below a heading.
fn keys(document: &str, heading: &str) -> BTreeSet<String> {
    let below = document.split_once(heading).unwrap_or_else(|| panic!("no {heading}")).1;
    let rows =
        below.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let code = Regex::new("`([A-Za-z0-9]+)`").unwrap();
    let first = rows.filter_map(|row| row.split('|').nth(1)).collect::<Vec<_>>().join(" ");
    code.captures_iter(&first).map(|key| key[1].to_owned()).collect()
}

/// Reads the keys of one backend.
type Parse = fn(&NetworkConfig) -> Result<(), ConfigError>;

#[test]
fn the_reference_of_the_network_config_has_the_keys_that_are_read() {
    let document = file("docs/network-config.md");
    let parse = |text: &str| NetworkConfig::parse(text, LeaseSource::Store);

    let both =
        r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","EnableNFTables":true}"#;
    // A value of no key's type is refused by the name of the key, so it is read.
    let all = keys(&document, "# Network config");
    for key in &all {
        let error = parse(&format!("{},\"{key}\":[[]]}}", &both[..both.len() - 1])).unwrap_err();
        assert_eq!(error.key, *key, "{error}");
    }
    let full: serde_json::Value = serde_json::from_str(&parse(both).unwrap().to_json()).unwrap();
    let read: BTreeSet<String> = full.as_object().unwrap().keys().cloned().collect();
    assert_eq!(all, read, "what a config has with all defaults written out");

    let backends: [(&str, Parse); 5] = [
        ("vxlan", |config| VxlanConfig::parse(&config.backend).map(drop)),
        ("udp", |config| UdpConfig::parse(&config.backend).map(drop)),
        ("ipip", |config| IpipConfig::parse(&config.backend).map(drop)),
        ("wireguard", |config| WireguardConfig::parse(&config.backend).map(drop)),
        ("extension", |config| ExtensionConfig::parse(&config.backend).map(drop)),
    ];
    let listed = Regex::new(r"(?s)const KEYS: \[&str; \d\] =\s+\[(.*?)\];").unwrap();
    let quoted = Regex::new("\"(\\w+)\"").unwrap();
    for (kind, check) in backends {
        let keys = keys(&document, &format!("## `\"Type\": \"{kind}\"`"));
        for key in &keys {
            let config = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"{kind}","{key}":[[]]}}}}"#);
            let error = check(&parse(&config).unwrap()).unwrap_err();
            assert_eq!(error.key, format!("Backend.{key}"), "{error}");
        }
        let source = file(&format!("flannel-backend-{kind}/src/config.rs"));
        let list = listed.captures(&source).unwrap()[1].to_owned();
        for key in quoted.captures_iter(&list) {
            assert!(keys.contains(&key[1]), "docs/network-config.md lacks {} of {kind}", &key[1]);
        }
    }

    let keys = keys(&document, "## Several backends in one network");
    for key in &keys {
        let config = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"udp","{key}":[[]]}}}}"#);
        let error = parse(&config).unwrap_err();
        assert!(error.key.starts_with(&format!("Backend.{key}")), "{error}");
    }
    let source = file("flannel-core/src/config/mixing.rs");
    for key in quoted.captures_iter(&listed.captures(&source).unwrap()[1]) {
        assert!(keys.contains(&key[1]), "docs/network-config.md lacks {}", &key[1]);
    }
}

/// Each symptom leads to what the doctor looks at, by names that it knows.
#[test]
fn each_symptom_leads_to_checks_of_the_doctor() {
    let document = file("docs/troubleshooting.md");
    let word = Regex::new("`([^`]+)`").unwrap();
    let is_check = |name: &str| Check::named(name).is_some();
    let mut named = BTreeSet::new();
    for section in document.split("\n## ").skip(1) {
        let (title, text) = section.split_once('\n').unwrap();
        let (mut leads, mut commands) = (false, Vec::new());
        for quoted in word.captures_iter(text) {
            let checks = quoted[1].strip_prefix("flanneld doctor --check=").unwrap_or(&quoted[1]);
            let is_command = checks.len() < quoted[1].len();
            commands.extend(is_command.then(|| checks.to_owned()));
            named.extend(is_check(checks).then(|| checks.to_owned()));
            leads |= is_check(checks);
        }
        // A block of commands.
        commands.extend(
            text.lines().filter_map(|line| line.strip_prefix("flanneld doctor --check=")).map(str::to_owned),
        );
        for check in commands.iter().filter(|it| *it != "NAME,..").flat_map(|list| list.split(',')) {
            assert!(is_check(check), "{title}: the doctor has no check {check}");
            named.insert(check.to_owned());
            leads = true;
        }
        assert!(leads || title == "Reporting a problem", "{title} leads to no check");
    }
    // Those that no symptom needs: they are shown by the doctor itself.
    let rest: Vec<&str> =
        CHECKS.iter().map(|check| check.name).filter(|name| !named.contains(*name)).collect();
    assert_eq!(rest, Vec::<&str>::new(), "docs/troubleshooting.md has no place for these checks");
}
