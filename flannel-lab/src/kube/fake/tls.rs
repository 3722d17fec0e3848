//! Keys of the server, from PEM files.

use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::LabError;
use crate::etcd::TlsFiles;

/// A server with these keys. It takes clients with a certificate of the same authority, and clients without one.
pub(super) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, LabError> {
    let bad = |file: &Path, why: String| LabError::unexpected(format!("reading {}", file.display()), why);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca)? {
        roots.add(certificate).map_err(|error| bad(&files.ca, error.to_string()))?;
    }
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| bad(&files.ca, error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&files.server_key)
        .map_err(|error| bad(&files.server_key, error.to_string()))?;
    let chain = certificates(&files.server_cert)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, key))
        .map_err(|error| bad(&files.server_cert, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, LabError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    read.map_err(|error| LabError::unexpected(format!("reading {}", file.display()), error.to_string()))
}
