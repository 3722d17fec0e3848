//! The manifest that operators apply, given to the server as it is: it reads YAML itself.

use std::fs;
use std::path::PathBuf;

use flannel_lab::kube::real::{ApiServer, Body};

use crate::Fallible;

/// What the project ships, unless told.
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/kubernetes/flannel.yaml");

/// The namespace of everything in it that has one.
pub(crate) const NAMESPACE: &str = "kube-flannel";

/// Where objects of a kind are made.
const COLLECTIONS: [(&str, &str); 7] = [
    ("Namespace", "/api/v1/namespaces"),
    ("ServiceAccount", "/api/v1/namespaces/kube-flannel/serviceaccounts"),
    ("ConfigMap", "/api/v1/namespaces/kube-flannel/configmaps"),
    ("ClusterRole", "/apis/rbac.authorization.k8s.io/v1/clusterroles"),
    ("ClusterRoleBinding", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
    ("DaemonSet", "/apis/apps/v1/namespaces/kube-flannel/daemonsets"),
    ("ValidatingAdmissionPolicy", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"),
];

/// What puts the policy in force. Tokens here are bound to secrets, by which they can be withdrawn, and so don't say on
/// which node their pod is: the policy would deny all of them. The server compiles its expressions without it, too.
const LEFT_OUT: &str = "ValidatingAdmissionPolicyBinding";

/// The manifest's text.
pub(crate) fn read(given: Option<&PathBuf>) -> Fallible<String> {
    let path = given.cloned().unwrap_or_else(|| SHIPPED.into());
    fs::read_to_string(&path).map_err(|error| format!("the manifest {}: {error}", path.display()).into())
}

/// Makes all objects and returns their kinds in order; the server refuses what has no such form.
pub(crate) fn apply(api: &ApiServer, manifest: &str) -> Fallible<Vec<String>> {
    let mut kinds = Vec::new();
    for document in documents(manifest) {
        let kind = kind(&document).ok_or("a document of the manifest says no kind")?;
        if kind == LEFT_OUT {
            continue;
        }
        let collection = COLLECTIONS.iter().find(|(known, _)| *known == kind);
        let (_, path) = collection.ok_or_else(|| format!("a {kind} in the manifest: not known here"))?;
        api.ask("POST", path, Some(Body::yaml(&document)))?.success()?;
        kinds.push(kind.to_owned());
    }
    Ok(kinds)
}

/// The documents of a YAML file, without those that are all comment.
fn documents(yaml: &str) -> Vec<String> {
    let lines = yaml.lines().collect::<Vec<_>>();
    let documents = lines.split(|line| line.trim_end() == "---").map(|lines| lines.join("\n"));
    let says_something = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    documents.filter(|document| document.lines().any(says_something)).collect()
}

fn kind(document: &str) -> Option<&str> {
    let kind = document.lines().find_map(|line| line.strip_prefix("kind:"))?;
    Some(kind.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_cut_into_documents() {
        let yaml = "# flannel\n---\nkind: Namespace\nmetadata:\n  kind: x\n---\n\n---\n\"a\": 1\nkind: \"ConfigMap\"\n";
        let kinds = documents(yaml).iter().map(|one| kind(one).map(str::to_owned)).collect::<Vec<_>>();
        assert_eq!(kinds, [Some("Namespace".to_owned()), Some("ConfigMap".to_owned())]);
        assert_eq!(kind("metadata:\n  kind: x"), None);
    }
}
