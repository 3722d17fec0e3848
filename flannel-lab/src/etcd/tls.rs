//! A certificate authority for one test, by the `openssl` program.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::{LabError, exec};

/// The PEM files of both sides. The directory they're in is the caller's.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The authority's certificate, which both sides trust.
    pub ca: PathBuf,
    /// The server's certificate, for its addresses.
    pub server_cert: PathBuf,
    /// The server's key.
    pub server_key: PathBuf,
    /// The client's certificate.
    pub client_cert: PathBuf,
    /// The client's key.
    pub client_key: PathBuf,
}

impl TlsFiles {
    /// Makes an authority, a server certificate for these addresses and a client certificate.
    /// All are good for a day.
    pub fn create(dir: &Path, addresses: &[IpAddr]) -> Result<Self, LabError> {
        let file = |name: &str| dir.join(name);
        let (ca, ca_key) = (file("ca.pem"), file("ca-key.pem"));
        let mut openssl = exec::command("openssl")?;
        openssl
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args(["-nodes", "-days", "1", "-subj", "/CN=flannel-lab CA"])
            .args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"])
            .arg("-keyout")
            .arg(&ca_key)
            .arg("-out")
            .arg(&ca);
        exec::output(openssl)?;

        let loopback = ["IP:127.0.0.1".to_owned(), "IP:::1".to_owned()];
        let names = loopback
            .into_iter()
            .chain(addresses.iter().map(|ip| format!("IP:{ip}")));
        let names = names.collect::<Vec<_>>().join(",");
        // etcd is its own client too: its JSON gateway dials the server with the same certificate.
        let server = format!("subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n");
        issue(dir, "server", &server)?;
        issue(dir, "client", "extendedKeyUsage=clientAuth\n")?;
        Ok(Self {
            ca,
            server_cert: file("server.pem"),
            server_key: file("server-key.pem"),
            client_cert: file("client.pem"),
            client_key: file("client-key.pem"),
        })
    }

    pub(super) fn server_args(&self) -> Vec<String> {
        let files = [
            ("--cert-file", &self.server_cert),
            ("--key-file", &self.server_key),
            ("--trusted-ca-file", &self.ca),
        ];
        let args = files.map(|(flag, file)| format!("{flag}={}", file.display()));
        args.into_iter()
            .chain(["--client-cert-auth".to_owned()])
            .collect()
    }

    pub(super) fn client_args(&self) -> [String; 3] {
        let files = [
            ("--cert", &self.client_cert),
            ("--key", &self.client_key),
            ("--cacert", &self.ca),
        ];
        files.map(|(flag, file)| format!("{flag}={}", file.display()))
    }
}

/// A key and a certificate by the directory's authority, with these extensions.
fn issue(dir: &Path, name: &str, extensions: &str) -> Result<(), LabError> {
    let file = |suffix: &str| dir.join(format!("{name}{suffix}"));
    let list = file(".ext");
    fs::write(&list, extensions).map_err(LabError::io(format!("writing {}", list.display())))?;

    let mut request = exec::command("openssl")?;
    request
        .args([
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args(["-subj", &format!("/CN=flannel-lab {name}")])
        .arg("-keyout")
        .arg(file("-key.pem"))
        .arg("-out")
        .arg(file(".csr"));
    exec::output(request)?;

    let mut sign = exec::command("openssl")?;
    sign.args(["x509", "-req", "-days", "1", "-in"])
        .arg(file(".csr"))
        .arg("-CA")
        .arg(dir.join("ca.pem"))
        .arg("-CAkey")
        .arg(dir.join("ca-key.pem"))
        .arg("-CAcreateserial")
        .arg("-extfile")
        .arg(list)
        .arg("-out")
        .arg(file(".pem"));
    exec::output(sign).map(drop)
}
