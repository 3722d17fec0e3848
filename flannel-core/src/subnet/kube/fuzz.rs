//! What an API server sends and a kubeconfig says, as functions of bytes, for fuzzing.

use kube::config::Kubeconfig;

use super::annotations::AnnotationPrefix;
use super::client::parse_url;
use super::feed::{Event, decode};
use super::known::Known;
use super::node::{BadObject, Judgement, Names, NodeObject};
use super::page::Splitter;
use crate::addr::Family;
use crate::lease::{BadRecord, LeaseUpdate};
use crate::secret::ServerUrl;

/// The node that reads.
const OWN: &str = "node1";

/// Lines of a watch, one behind another, and the same bytes as one page of a list.
///
/// # Panics
/// If nodes are known otherwise than by a list of them, if where a page is cut matters, or if a reason does not fit a
/// log line.
pub(crate) fn nodes(data: &[u8]) {
    let prefix = AnnotationPrefix::default();
    let names = Names::new(&prefix);
    let known = || Known::new(OWN, Family::ALL.to_vec(), prefix.clone());
    let (mut followed, mut objects) = (known(), Vec::<(Box<str>, NodeObject)>::new());
    for line in data.split(|byte| *byte == b'\n') {
        let (event, _) = decode(line, &names, OWN);
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
                followed.take(object)
            }
            Event::Deleted(name) => {
                objects.retain(|(other, _)| **other != *name);
                followed.remove(&name)
            }
            Event::Garbage(why) | Event::Failed(why) => {
                assert!(!why.is_empty());
                Vec::new()
            }
            Event::Bookmark { .. } | Event::Expired => Vec::new(),
        };
        for update in updates {
            if let LeaseUpdate::Undecodable(record) = update {
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
    match node.judge(&Family::ALL, prefix) {
        Judgement::Lease(lease) => {
            assert_eq!(lease.key.to_string().parse(), Ok(lease.key));
            _ = Family::ALL.map(|family| lease.attrs.underlay(family));
        }
        Judgement::Bad { reason, .. } => assert!(!reason.is_empty()),
        Judgement::Apart => {}
    }
}

fn check(record: &BadRecord) {
    let text = record.to_string();
    assert!(text.chars().count() < 3000 && !text.contains('\n'), "{text}");
}

fn page(data: &[u8]) {
    let split = |at: usize| {
        let (mut splitter, mut items) = (Splitter::default(), Vec::new());
        let (before, after) = data.split_at(at);
        for part in [before, after] {
            splitter.take(part, |item| {
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
pub(crate) fn kubeconfig(data: &[u8]) {
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
