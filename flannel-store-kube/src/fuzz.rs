//! What an API server sends and a kubeconfig says, as functions of bytes, for fuzzing.

use flannel_core::addr::Family;
use flannel_core::lease::{LeaseUpdate, UnreadableRecord};
use flannel_core::secret::ServerUrl;
use kube::config::Kubeconfig;

use super::annotations::AnnotationPrefix;
use super::client::parse_url;
use super::feed::{Event, decode};
use super::known::{Folded, Known};
use super::node::{BadObject, Judgement, Names, NodeObject};
use super::page::Splitter;

/// The node that reads.
const OWN: &str = "node1";

/// Lines of a watch, one behind another, and the same bytes as one page of a list.
///
/// # Panics
/// If nodes are known otherwise than by a list of them, if what is passed over as a heartbeat would change something, if
/// where a page is cut matters, or if a reason does not fit a log line.
pub fn nodes(data: &[u8]) {
    let prefix = AnnotationPrefix::default();
    let names = Names::new(&prefix);
    let known = || Known::new(OWN, Family::ALL.to_vec(), prefix.clone());
    let (mut followed, mut objects) = (known(), Vec::<(Box<str>, NodeObject)>::new());
    for line in data.split(|byte| *byte == b'\n') {
        let (event, _) = decode(line, &names, OWN, |wire| followed.is_same(wire, &names));
        let updates = match event {
            Event::Put(object, own) => {
                assert!(own.is_none() || object.as_ref().is_ok_and(|it| &*it.name == OWN) || object.is_err());
                judge(object.as_ref(), &prefix);
                let name = match &object {
                    Ok(node) => Some(node.name.clone()),
                    Err(BadObject { name, .. }) => name.clone(),
                };
                objects.retain(|(other, _)| Some(other) != name.as_ref());
                if let Ok(node) = &object {
                    objects.push((node.name.clone(), node.clone()));
                }
                followed.fold(object).updates
            }
            Event::Deleted(name) => {
                objects.retain(|(other, _)| **other != *name);
                followed.remove(&name)
            }
            Event::Garbage(why) | Event::Failed(why) => {
                assert!(!why.is_empty());
                Vec::new()
            }
            Event::Same => {
                let (event, _) = decode(line, &names, OWN, |_| false);
                let Event::Put(object, None) = event else { panic!("{event:?}") };
                let folded = followed.fold(object);
                assert_eq!(folded, Folded::default(), "what is passed over would change nothing");
                Vec::new()
            }
            Event::Bookmark { .. } | Event::Expired => Vec::new(),
        };
        for update in updates {
            if let LeaseUpdate::Unreadable(record) = update {
                check(&record);
            }
        }
    }
    followed.problems().named().for_each(|record| check(&record));
    if followed.problems().is_empty() {
        let mut listed = followed.list();
        for (_, node) in objects {
            followed.add(&mut listed, Ok(node));
        }
        let mut listed_anew = known();
        listed_anew.replace(listed);
        assert!(listed_anew.keys().eq(followed.keys()), "a list says what the events said");
    }
    page(data);
}

fn judge(object: Result<&NodeObject, &BadObject>, prefix: &AnnotationPrefix) {
    let Ok(node) = object else { return };
    _ = node.published();
    match node.judge(node.key(&Family::ALL), prefix) {
        Judgement::Lease(lease) => {
            assert_eq!(lease.key.to_string().parse(), Ok(lease.key));
            _ = Family::ALL.map(|family| lease.attrs.underlay(family));
            assert!(node.is_whole() || lease.attrs.receives.is_empty());
        }
        Judgement::Bad { reason, .. } => assert!(!reason.is_empty()),
        Judgement::Apart => {}
    }
}

fn check(record: &UnreadableRecord) {
    let text = record.to_string();
    assert!(text.chars().count() < 3000 && !text.contains('\n'), "{text}");
}

fn page(data: &[u8]) {
    let split = |at: usize| {
        let (mut splitter, mut items) = (Splitter::default(), Vec::new());
        let (before, after) = data.split_at(at);
        for part in [before, after] {
            splitter.push(part, |item| {
                items.push(format!("{item:?}"));
                Ok(())
            })?;
        }
        Ok::<_, String>((items, splitter.rest().to_vec()))
    };
    let whole = split(data.len());
    for at in [0, data.len() / 3, data.len() / 2] {
        assert_eq!(split(at), whole, "cut at {at}");
    }
}

/// A kubeconfig, and the URL of a server.
pub fn kubeconfig(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let servers = match Kubeconfig::from_yaml(text) {
        Ok(config) => config.clusters.into_iter().filter_map(|named| named.cluster?.server).collect(),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            Vec::new()
        }
    };
    for url in servers.iter().map(String::as_str).chain(text.lines()) {
        match parse_url(&ServerUrl::from(url.to_owned())) {
            Ok(uri) => assert!(uri.host().is_some_and(|host| !host.is_empty())),
            Err(why) => assert!(why.contains("give an URL such as")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Mutations of each seed folder; a second or two without optimization.
    const ROUNDS: usize = 20_000;

    fn run(target: &str, rounds: usize, check: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
        flannel_core::testing::fuzz::replay(&folder, rounds, check);
    }

    #[test]
    fn every_target_has_its_corpus_and_its_test() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        flannel_core::testing::fuzz::every_target_is_run(folder, include_str!("fuzz.rs"));
    }

    #[test]
    fn every_node_and_page_is_read_or_named() {
        run("node", ROUNDS, nodes);
    }

    #[test]
    fn every_kubeconfig_is_read_or_refused() {
        run("kubeconfig", ROUNDS / 4, kubeconfig);
    }
}
