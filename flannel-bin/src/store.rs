//! The store that the operator chose.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::subnet::SubnetManager;
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};

use crate::cli::{Common, Options, Store};

/// A store, or why it can't be used.
type Opened = Result<Arc<dyn SubnetManager>, Box<dyn Error>>;

/// Makes the store, which connects when it is used.
pub(crate) fn open(options: &Options) -> Opened {
    let renew_margin = options.subnet_lease_renew_margin;
    match &options.common.store {
        _ if options.common.kube_subnet_mgr => kube(options, |name| std::env::var(name).ok()),
        Store::Etcd => etcd(&options.common, renew_margin),
        Store::Local(dir) => {
            let mut local = LocalOptions::new(dir);
            (local.renew_margin, local.allow_shared) =
                (renew_margin, options.common.local_store_allow_shared);
            Ok(Arc::new(LocalSubnetManager::new(local)))
        }
    }
}

#[cfg(feature = "etcd")]
fn etcd(flags: &Common, renew_margin: Duration) -> Opened {
    use flannel_store_etcd::{EtcdOptions, EtcdSubnetManager, EtcdTls};

    let has_user = !flags.etcd_username.is_empty();
    let etcd = EtcdOptions {
        prefix: flags.etcd_prefix.clone(),
        tls: EtcdTls {
            ca_file: flags.etcd_cafile.clone(),
            cert_file: flags.etcd_certfile.clone(),
            key_file: flags.etcd_keyfile.clone(),
        },
        username: has_user.then(|| flags.etcd_username.clone()),
        password: has_user.then(|| flags.etcd_password.clone()),
        renew_margin,
        ..EtcdOptions::new(flags.etcd_endpoints.iter().cloned())
    };
    Ok(Arc::new(EtcdSubnetManager::new(etcd)?))
}

#[cfg(not(feature = "etcd"))]
fn etcd(_: &Common, _: Duration) -> Opened {
    Err("this build has no etcd store; give --store=local:DIR, or build flanneld with the feature \"etcd\""
        .into())
}

/// The Kubernetes API; where and who we are is in the flags, else in the environment that a pod has.
#[cfg(feature = "kube")]
fn kube(options: &Options, env: impl Fn(&str) -> Option<String>) -> Opened {
    use flannel_store_kube::{AnnotationPrefix, KubeAccess, KubeOptions, KubeSubnetManager, NodeIdentity};

    let flags = &options.common;
    let access = match (&flags.kubeconfig_file, &flags.kube_api_url) {
        (Some(file), server) => KubeAccess::Kubeconfig { file: file.clone(), server: server.clone() },
        (None, Some(url)) => KubeAccess::Url(url.clone()),
        (None, None) => KubeAccess::in_cluster(&env).ok_or(
            "nothing says where the Kubernetes API is: this is no pod (KUBERNETES_SERVICE_HOST and \
             KUBERNETES_SERVICE_PORT are not set); give --kubeconfig-file or --kube-api-url",
        )?,
    };
    let node = NodeIdentity::from_variables(env).ok_or(
        "nothing says which node this is; set the variable NODE_NAME, or POD_NAME and POD_NAMESPACE",
    )?;
    let annotations = AnnotationPrefix::parse(&flags.kube_annotation_prefix)
        .map_err(|error| format!("--kube-annotation-prefix can't be used: {error}"))?;
    let options = KubeOptions {
        annotations,
        net_config: flags.net_config_path.clone().unwrap_or_default(),
        set_condition: options.set_node_network_unavailable,
        ..KubeOptions::new(access, node)
    };
    Ok(Arc::new(KubeSubnetManager::new(options)?))
}

#[cfg(not(feature = "kube"))]
fn kube(_: &Options, _: impl Fn(&str) -> Option<String>) -> Opened {
    Err("this build has no Kubernetes store; build flanneld with the feature \"kube\"".into())
}

#[cfg(all(test, feature = "etcd", feature = "kube"))]
mod tests {
    use super::*;
    use crate::cli::{self, Command};

    fn opened(api_url: Option<&str>, prefix: &str, vars: &[(&str, &str)]) -> Result<String, String> {
        let mut args = vec!["--kube-subnet-mgr".to_owned(), format!("--kube-annotation-prefix={prefix}")];
        args.extend(api_url.map(|url| format!("--kube-api-url={url}")));
        let Command::Run(flags) = cli::command(&args, |_| None)? else { panic!("{args:?}") };
        let vars: std::collections::HashMap<_, _> = vars.iter().copied().collect();
        let store = kube(&flags, |name| vars.get(name).map(|value| (*value).to_owned()));
        store.map(|store| store.place()).map_err(|error| flannel_core::error::chain(&*error))
    }

    #[test]
    fn a_lease_can_be_released_by_hand() {
        let lease = "10.5.1.0-24&fd00:1::-64".parse().unwrap();
        let opened = |flag: &str| {
            let Ok(Command::Run(options)) = cli::command(&[flag.to_owned()], |_| None) else {
                panic!("{flag}")
            };
            open(&options).unwrap().release_command(lease).unwrap()
        };
        let local = "rm -f '/var/lib/store/subnets/10.5.1.0-24&fd00:1::-64'";
        assert_eq!(opened("--store=local:/var/lib/store"), local);
        let etcd = opened("--etcd-prefix=/x/");
        assert!(etcd.ends_with(" del '/x/subnets/10.5.1.0-24&fd00:1::-64'"), "{etcd}");
        let Ok(Command::Run(options)) = cli::command(&["--kube-api-url=http://a:1".to_owned()], |_| None)
        else {
            panic!("no options")
        };
        let kube = kube(&options, |name| (name == "NODE_NAME").then(|| "n1".to_owned())).unwrap();
        let want = "kubectl annotate node n1 flannel.alpha.coreos.com/kube-subnet-manager-";
        assert_eq!(kube.release_command(lease).unwrap(), want);
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
        assert!(refused(Some("10.0.0.1"), prefix, &pod).contains("give an URL such as"));
        assert!(refused(url, prefix, &[("NODE_NAME", "a/../b")]).contains("a/../b"));
    }
}
