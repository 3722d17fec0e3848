//! Checks how the server of leases is named, as far as this build can ask one.

use super::flags::Common;

/// A value that can't be used.
pub(super) struct Wrong {
    pub(super) flag: &'static str,
    pub(super) expected: String,
}

#[cfg(feature = "etcd")]
pub(super) fn etcd(flags: &Common) -> Option<Wrong> {
    let wrong = |flannel_store_etcd::EndpointError { problem, .. }| Wrong {
        flag: "etcd-endpoints",
        expected: format!("a list of endpoints like http://10.0.0.1:2379: one {problem}"),
    };
    flags.etcd_endpoints.iter().try_for_each(flannel_store_etcd::check_endpoint).map_err(wrong).err()
}

#[cfg(not(feature = "etcd"))]
pub(super) fn etcd(_: &Common) -> Option<Wrong> {
    None
}

#[cfg(feature = "kube")]
pub(super) fn kube(flags: &Common) -> Option<Wrong> {
    use flannel_store_kube::{AnnotationPrefix, check_api_url};

    let wrong = |flag, expected: &str| Some(Wrong { flag, expected: expected.to_owned() });
    if let Err(error) = flags.kube_api_url.iter().try_for_each(check_api_url) {
        return wrong("kube-api-url", &format!("an URL of an API server: {error}"));
    }
    if AnnotationPrefix::parse(&flags.kube_annotation_prefix).is_err() {
        return wrong("kube-annotation-prefix", "a prefix of annotations such as flannel.alpha.coreos.com");
    }
    None
}

#[cfg(not(feature = "kube"))]
pub(super) fn kube(_: &Common) -> Option<Wrong> {
    None
}
