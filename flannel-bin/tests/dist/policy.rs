//! The `ValidatingAdmissionPolicy`: its expressions, evaluated over objects of the lab's API server. They are compiled and
//! run by an implementation of CEL other than the API server's, so types that only the API server checks are not checked
//! here.

use cel::{Context, Program, Value as Cel};
use flannel_lab::kube::fake::kubelet_node;
use serde_json::{Value, json};

use crate::manifest;
use crate::objects::{of_kind, text};

/// The account of the `DaemonSet`'s pods.
const ACCOUNT: &str = "system:serviceaccount:kube-flannel:flannel";

/// What the API server says of who holds a pod's token.
fn pod_on(node: &str) -> Value {
    json!({ "username": ACCOUNT, "extra": {
        "authentication.kubernetes.io/node-name": [node],
        "authentication.kubernetes.io/pod-name": ["kube-flannel-ds-x"],
    }})
}

fn is_true(expression: &str, variables: &[(&str, &Value)]) -> bool {
    let program = Program::compile(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    let mut context = Context::default();
    for (name, value) in variables {
        context.add_variable(*name, cel::to_value(value).unwrap()).unwrap();
    }
    match program.execute(&context) {
        Ok(Cel::Bool(answer)) => answer,
        other => panic!("{expression}: {other:?}"),
    }
}

/// What the policy says to a change of a node: `None` if it is not asked, else the messages of those that deny it.
pub(crate) fn denials(user: &Value, old: &Value, new: &Value) -> Option<Vec<String>> {
    let objects = manifest::objects();
    let spec = &of_kind(&objects, "ValidatingAdmissionPolicy")["spec"];
    let request = json!({ "name": text(old, "/metadata/name"), "operation": "UPDATE", "userInfo": user });
    let variables = [("request", &request), ("object", new), ("oldObject", old)];
    let list = |name: &str| spec[name].as_array().unwrap().clone();
    let matches = |condition: &Value| is_true(text(condition, "/expression"), &variables);
    if !list("matchConditions").iter().all(matches) {
        return None;
    }
    let validations = list("validations");
    let broken = validations.iter().filter(|it| !is_true(text(it, "/expression"), &variables));
    Some(broken.map(|it| text(it, "/message").to_owned()).collect())
}

#[test]
fn a_pods_token_changes_its_own_node_alone() {
    let node = kubelet_node("node-1", &["10.244.1.0/24"], 4000);
    let mut published = node.clone();
    published["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"] = json!("192.0.2.1");
    let mut labelled = published.clone();
    labelled["metadata"]["labels"]["node-restriction.kubernetes.io/team"] = json!("a");
    let mut bare = node.clone();
    bare["metadata"].as_object_mut().unwrap().remove("labels");
    let (own, labels) = ("its pod is on, and no other", "may not change labels");
    let unbound = json!({ "username": ACCOUNT });
    let no_node = json!({ "username": ACCOUNT, "extra": { "x": ["node-1"] } });
    let two = json!({ "username": ACCOUNT, "extra": { "authentication.kubernetes.io/node-name": ["node-1", "node-2"] } });
    for (what, user, old, new, want) in [
        ("its own", pod_on("node-1"), &node, &published, Some(vec![])),
        ("its own, without labels", pod_on("node-1"), &bare, &bare, Some(vec![])),
        ("another's", pod_on("node-2"), &node, &published, Some(vec![own])),
        ("a name that begins so", pod_on("node-11"), &node, &published, Some(vec![own])),
        ("a token of no pod", unbound, &node, &published, Some(vec![own])),
        ("a token of no node", no_node, &node, &published, Some(vec![own])),
        ("two nodes", two, &node, &published, Some(vec![own])),
        ("labels of its own", pod_on("node-1"), &node, &labelled, Some(vec![labels])),
        ("the first labels", pod_on("node-1"), &bare, &node, Some(vec![labels])),
        ("all labels gone", pod_on("node-1"), &node, &bare, Some(vec![labels])),
        ("labels of another's", pod_on("node-2"), &node, &labelled, Some(vec![own, labels])),
        ("a kubelet", json!({ "username": "system:node:node-2", "groups": [] }), &node, &labelled, None),
    ] {
        let said = denials(&user, old, new);
        let fits = match (&said, &want) {
            (Some(said), Some(want)) => {
                said.len() == want.len() && said.iter().zip(want).all(|(said, want)| said.contains(want))
            }
            (said, want) => said.is_none() && want.is_none(),
        };
        assert!(fits, "{what}: {said:?}");
    }
}

/// The objects fit together, and the policy is asked for what the role allows to write.
#[test]
fn the_policy_is_in_force_for_the_account() {
    let objects = manifest::objects();
    let (policy, binding) = (
        of_kind(&objects, "ValidatingAdmissionPolicy"),
        of_kind(&objects, "ValidatingAdmissionPolicyBinding"),
    );
    assert_eq!(text(binding, "/spec/policyName"), text(policy, "/metadata/name"));
    assert_eq!(binding["spec"]["validationActions"], json!(["Deny"]));
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    let rule = &policy["spec"]["matchConstraints"]["resourceRules"][0];
    let account = of_kind(&objects, "ServiceAccount");
    let name = format!(
        "system:serviceaccount:{}:{}",
        text(account, "/metadata/namespace"),
        text(account, "/metadata/name")
    );
    assert_eq!(name, ACCOUNT);
    for (group, resource, verb) in crate::objects::called() {
        if verb == "patch" {
            assert!(rule["apiGroups"].as_array().unwrap().contains(&json!(group)));
            assert!(rule["resources"].as_array().unwrap().contains(&json!(resource)), "{resource}");
            assert_eq!(rule["operations"], json!(["UPDATE"]), "which a patch is");
        }
    }
}

/// What the agent does to its node is what the policy allows.
#[cfg(feature = "kube")]
#[test]
fn the_agent_does_nothing_that_the_policy_denies() {
    use std::path::Path;
    use std::time::Duration;

    use flannel_lab::bed::Bed;
    use flannel_lab::cluster::{Cluster, Families};
    use flannel_lab::kube::store::KubeStore;
    use flannel_lab::sandbox::in_sandbox;
    use flannel_lab::store::Store as _;
    use flannel_lab::test_name;
    use flannel_lab::wait::eventually;

    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(1).families(Families::V4).build().unwrap();
        let store = KubeStore::start(&cluster).unwrap();
        store.put_config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
        let name = store.api().node_names().remove(0);
        let before = store.api().node(&name).unwrap();
        let bed = Bed::new(cluster, store, Path::new(crate::FLANNELD));
        bed.start(1).unwrap();
        let after = eventually(Duration::from_secs(20), "the annotations and the condition", || {
            let node = bed.store.api().node(&name).unwrap();
            let has = node["metadata"]["annotations"].to_string().contains("VtepMAC");
            let is_up = node["status"]["conditions"].to_string().contains("NetworkUnavailable");
            (has && is_up).then_some(node)
        });
        assert_eq!(denials(&pod_on(&name), &before, &after), Some(Vec::new()));
        assert!(denials(&pod_on("another"), &before, &after).is_some_and(|said| said.len() == 1));
    });
}
