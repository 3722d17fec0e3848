//! The store that the operator chose.

use std::sync::Arc;

use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};
use flannel_core::subnet::{SubnetError, SubnetManager};

use crate::cli::{KubeFlags, Options, StoreChoice};

/// The store can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Its options are wrong.
    #[error(transparent)]
    Refused(#[from] SubnetError),
    /// The build lacks it.
    #[cfg(not(feature = "etcd"))]
    #[error(
        "this build has no etcd store; give --store=local:DIR, or build flanneld with the feature \"etcd\""
    )]
    NoEtcd,
    /// The build lacks it.
    #[cfg(not(feature = "kube"))]
    #[error("this build has no Kubernetes store; build flanneld with the feature \"kube\"")]
    NoKube,
    /// Nothing says which node this is.
    #[cfg(feature = "kube")]
    #[error("nothing says which node this is; set the variable NODE_NAME, or POD_NAME and POD_NAMESPACE")]
    NoNode,
    /// Nothing says where the API server is.
    #[cfg(feature = "kube")]
    #[error(
        "nothing says where the Kubernetes API is: this is no pod (KUBERNETES_SERVICE_HOST and \
         KUBERNETES_SERVICE_PORT are not set); give --kubeconfig-file or --kube-api-url"
    )]
    NoServer,
    /// The annotations can't have such names.
    #[cfg(feature = "kube")]
    #[error("--kube-annotation-prefix can't be used")]
    Prefix(#[from] flannel_store_kube::AnnotationPrefixError),
}

/// Makes the store. It connects when it is used.
pub(crate) fn open(options: &Options) -> Result<Arc<dyn SubnetManager>, StoreError> {
    match &options.store {
        StoreChoice::Etcd => etcd(options),
        StoreChoice::Local(flags) => {
            let mut local = LocalOptions::new(&flags.dir);
            (local.renew_margin, local.allow_shared) = (options.renew_margin, flags.allow_shared);
            Ok(Arc::new(LocalSubnetManager::new(local)))
        }
        StoreChoice::Kube(flags) => kube(flags, |name| std::env::var(name).ok()),
    }
}

#[cfg(feature = "etcd")]
fn etcd(options: &Options) -> Result<Arc<dyn SubnetManager>, StoreError> {
    use flannel_store_etcd::{EtcdOptions, EtcdSubnetManager, EtcdTls};

    let flags = &options.etcd;
    let (cert_file, key_file) = flags.identity.clone().unzip();
    let (username, password) = flags.user.clone().unzip();
    let etcd = EtcdOptions {
        prefix: flags.prefix.clone(),
        tls: EtcdTls { ca_file: flags.ca_file.clone(), cert_file, key_file },
        username,
        password,
        renew_margin: options.renew_margin,
        ..EtcdOptions::new(flags.endpoints.iter().cloned())
    };
    Ok(Arc::new(EtcdSubnetManager::new(etcd)?))
}

#[cfg(not(feature = "etcd"))]
fn etcd(_: &Options) -> Result<Arc<dyn SubnetManager>, StoreError> {
    Err(StoreError::NoEtcd)
}

/// Makes the Kubernetes store. Server and node come from the flags, else from the environment of a pod.
#[cfg(feature = "kube")]
fn kube(
    flags: &KubeFlags,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Arc<dyn SubnetManager>, StoreError> {
    use flannel_store_kube::{AnnotationPrefix, KubeAccess, KubeOptions, KubeSubnetManager, NodeIdentity};

    let env = |name| env(name).filter(|value| !value.is_empty());
    let access = match (&flags.kubeconfig, &flags.api_url) {
        (Some(file), server) => KubeAccess::Kubeconfig { file: file.clone(), server: server.clone() },
        (None, Some(url)) => KubeAccess::Url(url.clone()),
        (None, None) => {
            let port = env("KUBERNETES_SERVICE_PORT").and_then(|port| port.parse().ok());
            let server = env("KUBERNETES_SERVICE_HOST").zip(port).ok_or(StoreError::NoServer)?;
            KubeAccess::InCluster { server, service_account: KubeAccess::SERVICE_ACCOUNT.into() }
        }
    };
    let pod = || Some(NodeIdentity::Pod { namespace: env("POD_NAMESPACE")?, name: env("POD_NAME")? });
    let node = env("NODE_NAME").map(NodeIdentity::Name).or_else(pod).ok_or(StoreError::NoNode)?;
    let options = KubeOptions {
        annotations: AnnotationPrefix::parse(&flags.annotation_prefix)?,
        net_config: flags.net_config.clone(),
        set_condition: flags.set_condition,
        ..KubeOptions::new(access, node)
    };
    Ok(Arc::new(KubeSubnetManager::new(options)?))
}

#[cfg(not(feature = "kube"))]
fn kube(_: &KubeFlags, _: impl Fn(&str) -> Option<String>) -> Result<Arc<dyn SubnetManager>, StoreError> {
    Err(StoreError::NoKube)
}

#[cfg(all(test, feature = "kube"))]
mod tests {
    use super::*;

    fn opened(api_url: Option<&str>, prefix: &str, vars: &[(&str, &str)]) -> Result<String, String> {
        let flags = KubeFlags {
            api_url: api_url.map(Into::into),
            kubeconfig: None,
            annotation_prefix: prefix.to_owned(),
            net_config: "/nowhere".into(),
            set_condition: true,
        };
        let vars: std::collections::HashMap<_, _> = vars.iter().copied().collect();
        let store = kube(&flags, |name| vars.get(name).map(|value| (*value).to_owned()));
        store.map(|store| store.place()).map_err(|error| flannel_core::error::chain(&error))
    }

    #[test]
    fn a_node_is_known_by_its_name_or_its_pod() {
        let pod = [("POD_NAMESPACE", "kube-flannel"), ("POD_NAME", "kube-flannel-ds-x")];
        let service = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443")];
        let prefix = "flannel.alpha.coreos.com";
        assert_eq!(opened(None, prefix, &[&pod[..], &service[..]].concat()).unwrap(), "kube");
        let named = [&pod[..], &service[..], &[("NODE_NAME", "n1")]].concat();
        assert_eq!(opened(None, prefix, &named).unwrap(), "kube:n1");
        let url = Some("http://127.0.0.1:8080");
        assert_eq!(opened(url, prefix, &[("NODE_NAME", "n1")]).unwrap(), "kube:n1");

        let refused = |url, prefix, vars: &[_]| opened(url, prefix, vars).unwrap_err();
        assert!(refused(url, prefix, &pod[..1]).contains("POD_NAME"));
        assert!(refused(url, prefix, &[("NODE_NAME", "")]).contains("NODE_NAME"));
        assert!(refused(None, prefix, &pod).contains("--kubeconfig-file"));
        assert!(refused(url, "org", &pod).contains("--kube-annotation-prefix"));
        assert!(refused(Some("10.0.0.1"), prefix, &pod).contains("give an URL"));
        assert!(refused(url, prefix, &[("NODE_NAME", "a/../b")]).contains("a/../b"));
    }
}
