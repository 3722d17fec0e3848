//! Certificates, read and checked before the first connection, so that an error names the file, and read again
//! when they changed on disk: certificates run out, and what renews them replaces the files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use etcd_client::{Certificate, Identity, TlsOptions};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::options::EtcdTls;
use crate::subnet::SubnetError;

/// The TLS options for https endpoints.
pub(super) fn load(files: &EtcdTls) -> Result<TlsOptions, SubnetError> {
    let mut options = TlsOptions::new();
    options = match &files.ca_file {
        Some(path) => options.ca_certificate(Certificate::from_pem(certificates(path)?)),
        None => options.with_native_roots(),
    };
    match (&files.cert_file, &files.key_file) {
        (Some(cert), Some(key)) => {
            Ok(options.identity(Identity::from_pem(certificates(cert)?, private_key(key)?)))
        }
        (None, None) => Ok(options),
        (Some(given), None) | (None, Some(given)) => {
            Err(unusable(given, "certificate and key file only work together; the other one is missing"))
        }
    }
}

/// By what a replaced file is told from the one before: device, inode, size, and time of the last change.
pub(super) type Stamp = [Option<(u64, u64, u64, i64, i64)>; 3];

/// The files as they are now. A link is followed, since it is by a link that Kubernetes replaces a whole folder.
pub(super) fn stamp(files: &EtcdTls) -> Stamp {
    [&files.ca_file, &files.cert_file, &files.key_file].map(|path| {
        let found = fs::metadata(path.as_ref()?).ok()?;
        Some((found.dev(), found.ino(), found.len(), found.ctime(), found.ctime_nsec()))
    })
}

fn certificates(path: &Path) -> Result<Vec<u8>, SubnetError> {
    let pem = read(path)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match parsed {
        Ok(found) if found.is_empty() => Err(unusable(path, "there is no PEM certificate in it")),
        Ok(_) => Ok(pem),
        // What the parser says may quote the file.
        Err(_) => Err(unusable(path, "it is no valid PEM")),
    }
}

fn private_key(path: &Path) -> Result<Vec<u8>, SubnetError> {
    let pem = read(path)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(_) => Ok(pem),
        Err(_) => Err(unusable(path, "there is no PEM private key in it")),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SubnetError> {
    fs::read(path).map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SubnetError {
    SubnetError::Refused { what: format!("TLS file {} can't be used", path.display()), source: source.into() }
}
