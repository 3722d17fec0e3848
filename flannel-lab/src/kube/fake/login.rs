//! The files by which clients find a server and log in: a kubeconfig, or what a kubelet mounts into a pod.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::KubeApi;
use crate::LabError;

/// How a client says who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// Not at all.
    Anonymous,
    /// By a bearer token.
    Token(String),
    /// By the bearer token that a file has at the time.
    TokenFile(PathBuf),
    /// By the client certificate of the server's [`TlsFiles`](crate::etcd::TlsFiles).
    Certificate,
}

/// The namespace of the pods that agents run in.
const NAMESPACE: &str = "kube-flannel";

impl KubeApi {
    /// Writes a kubeconfig with one context, as `kubectl` reads it. With TLS it names the authority's file.
    pub fn write_kubeconfig(&self, file: &Path, login: &Login) -> Result<(), LabError> {
        // A JSON string is one in YAML, too.
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        let path = |path: &Path| quote(&path.display().to_string());
        let server = quote(&self.url());
        let authority =
            self.tls.as_ref().map(|tls| format!("    certificate-authority: {}\n", path(&tls.ca)));
        let authority = authority.unwrap_or_default();
        let user = match (login, &self.tls) {
            (Login::Anonymous, _) => " {}\n".to_owned(),
            (Login::Token(token), _) => format!("\n    token: {}\n", quote(token)),
            (Login::TokenFile(file), _) => format!("\n    tokenFile: {}\n", path(file)),
            (Login::Certificate, Some(tls)) => {
                let (cert, key) = (path(&tls.client_cert), path(&tls.client_key));
                format!("\n    client-certificate: {cert}\n    client-key: {key}\n")
            }
            (Login::Certificate, None) => {
                return Err(LabError::Invalid("a client certificate takes a server with TLS".to_owned()));
            }
        };
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: lab\n  cluster:\n    server: {server}\n{authority}users:\n- name: agent\n  user:{user}\
             contexts:\n- name: lab\n  context:\n    cluster: lab\n    user: agent\ncurrent-context: lab\n"
        );
        fs::write(file, text).map_err(LabError::io(format!("writing {}", file.display())))
    }

    /// Writes what a pod has in `/var/run/secrets/kubernetes.io/serviceaccount`: `token`, `namespace` and, with TLS,
    /// `ca.crt`. Called again, it replaces all files at once, as a kubelet does when a token is rotated: by the link
    /// that leads to their directory.
    pub fn write_service_account(&self, dir: &Path, token: &str) -> Result<(), LabError> {
        let what = || LabError::io(format!("writing a service account to {}", dir.display()));
        let mut files = vec![("token", token.as_bytes().to_vec()), ("namespace", NAMESPACE.into())];
        if let Some(tls) = &self.tls {
            files.push(("ca.crt", fs::read(&tls.ca).map_err(what())?));
        }
        replace(dir, &files).map_err(what())
    }
}

/// As the kubelet's `AtomicWriter`: files are links through `..data`, which is moved to a new directory.
fn replace(dir: &Path, files: &[(&str, Vec<u8>)]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let data = dir.join("..data");
    let old = fs::read_link(&data).ok();
    let is_first = old.as_ref().is_none_or(|old| old.as_os_str() != "..1");
    let new = if is_first { "..1" } else { "..2" };
    fs::create_dir(dir.join(new))?;
    for (name, bytes) in files {
        fs::write(dir.join(new).join(name), bytes)?;
    }
    let link = dir.join("..data_tmp");
    symlink(new, &link)?;
    fs::rename(link, data)?;
    for (name, _) in files {
        match symlink(Path::new("..data").join(name), dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    match old {
        Some(old) => fs::remove_dir_all(dir.join(old)),
        None => Ok(()),
    }
}
