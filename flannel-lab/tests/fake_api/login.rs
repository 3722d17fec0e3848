//! Tokens, TLS, and the files that lead a client to the server.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use flannel_lab::etcd::TlsFiles;
use flannel_lab::kube::fake::{KubeApi, KubeApiOptions, Login};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::api;
use crate::client::{Client, SOON};

const NODES: &str = "/api/v1/nodes";

fn tokens(tokens: &[&str]) -> Vec<String> {
    tokens.iter().map(|token| (*token).to_owned()).collect()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

fn tls_api(dir: &TempDir) -> (KubeApi, TlsFiles) {
    let tls = TlsFiles::create(dir.path(), &[]).unwrap();
    let options = KubeApiOptions {
        tls: Some(tls.clone()),
        tokens: Some(tokens(&["good"])),
        ..KubeApiOptions::default()
    };
    (KubeApi::start(options).unwrap(), tls)
}

/// A connection that trusts this authority, with the client certificate beside it or without.
fn connect(
    api: &KubeApi,
    trusted: &Path,
    own: Option<&TlsFiles>,
) -> Client<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = match own {
        Some(files) => {
            let chain = vec![CertificateDer::from_pem_file(&files.client_cert).unwrap()];
            let key = PrivateKeyDer::from_pem_file(&files.client_key).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let name = api.address().ip().to_string().try_into().unwrap();
    let stream = TcpStream::connect(api.address()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    Client::over(StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream))
}

#[test]
fn tokens_are_checked_at_each_request() {
    let api = api();
    api.set_tokens(Some(tokens(&["old", "new"])));
    let mut client = Client::to(&api);
    assert_eq!(client.get(NODES).failure(), (401, "Unauthorized".into(), "Unauthorized".into()));
    assert_eq!(client.get("/readyz").status, 200, "a probe has no token");
    client.headers = bearer("old");
    assert_eq!(client.get(NODES).status, 200);
    api.set_tokens(Some(tokens(&["new"])));
    assert_eq!(client.get(NODES).status, 401);
    client.headers = bearer("new");
    assert_eq!(client.get(NODES).status, 200);
    client.headers = "Authorization: Basic new\r\n".to_owned();
    assert_eq!(client.get(NODES).status, 401);
    api.set_tokens(None);
    assert_eq!(client.get(NODES).status, 200);
}

#[test]
fn tls_shows_a_certificate_and_takes_one() {
    let dir = tempfile::tempdir().unwrap();
    let (api, tls) = tls_api(&dir);
    assert!(api.url().starts_with("https://127.0.0.1:"));
    let mut client = connect(&api, &tls.ca, None);
    assert_eq!(client.get(NODES).status, 401);
    client.headers = bearer("good");
    assert_eq!(client.get(NODES).status, 200);
    assert_eq!(connect(&api, &tls.ca, Some(&tls)).get(NODES).status, 200, "a certificate is a login");
    let mut watch = connect(&api, &tls.ca, Some(&tls)).watch("resourceVersion=1");
    api.put_node(crate::small_node("node1", "new"));
    assert_eq!(watch.short(), crate::short("ADDED", "node1"));
    assert!(Client::to(&api).send("GET", NODES, "").is_ok_and(|()| true), "the port takes anything");

    // New keys, of another authority, for new connections.
    let other = tempfile::tempdir().unwrap();
    let new = TlsFiles::create(other.path(), &[]).unwrap();
    assert!(connect(&api, &new.ca, None).send("GET", NODES, "").is_err(), "not ours yet");
    api.set_tls(&new).unwrap();
    assert!(connect(&api, &tls.ca, None).send("GET", NODES, "").is_err(), "ours no more");
    assert_eq!(connect(&api, &new.ca, Some(&new)).get(NODES).status, 200);
    client.headers = bearer("good");
    assert_eq!(client.get(NODES).status, 200, "what is open goes on");
}

#[test]
fn a_kubeconfig_leads_to_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let (api, tls) = tls_api(&dir);
    let file = dir.path().join("kubeconfig");
    let text = |login: &Login| {
        api.write_kubeconfig(&file, login).unwrap();
        fs::read_to_string(&file).unwrap()
    };
    let token = text(&Login::Token("to\"ken".to_owned()));
    assert!(token.contains(&format!("    server: \"{}\"\n", api.url())), "{token}");
    assert!(token.contains(&format!("    certificate-authority: \"{}\"\n", tls.ca.display())), "{token}");
    assert!(token.contains("  user:\n    token: \"to\\\"ken\"\n"), "{token}");
    assert!(text(&Login::TokenFile("/t".into())).contains("    tokenFile: \"/t\"\n"));
    let certificate = text(&Login::Certificate);
    assert!(
        certificate.contains(&format!("    client-key: \"{}\"\n", tls.client_key.display())),
        "{certificate}"
    );
    assert!(text(&Login::Anonymous).contains("  user: {}\n"));
    let plain = crate::api();
    assert!(plain.write_kubeconfig(&file, &Login::Certificate).is_err());
    plain.write_kubeconfig(&file, &Login::Anonymous).unwrap();
    assert!(!fs::read_to_string(&file).unwrap().contains("certificate"));
}

#[test]
fn a_service_account_is_replaced_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (api, tls) = tls_api(&dir);
    let account = dir.path().join("serviceaccount");
    let read = |name: &str| fs::read_to_string(account.join(name)).unwrap();
    for token in ["first", "second", "third"] {
        api.write_service_account(&account, token).unwrap();
        assert_eq!((read("token").as_str(), read("namespace").as_str()), (token, "kube-flannel"));
        assert_eq!(read("ca.crt"), fs::read_to_string(&tls.ca).unwrap());
    }
    let entries = fs::read_dir(&account).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(entries.count(), 5, "three links, the link to the directory, the directory");
}
