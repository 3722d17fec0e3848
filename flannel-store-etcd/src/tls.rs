//! Certificates are read and checked before the first connection, so that an error names the file. They are read again
//! when they change on disk, since renewing a certificate replaces its file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use etcd_client::{Certificate, Identity, TlsOptions};
use flannel_core::guarded;
use flannel_core::subnet::SubnetError;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::options::EtcdTls;

/// The largest file that is read, in bytes: ten times the certificates of all public CAs.
const MAX_BYTES: u64 = 4 << 20;

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

/// What distinguishes a replaced file from the one before: device, inode, size, and time of the last change.
pub(super) type Stamp = [Option<(u64, u64, u64, i64, i64)>; 3];

/// The stamp of the present files. Links are followed, since Kubernetes replaces a whole folder by changing a link.
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
        // The parser's error may quote the file.
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
    // Links are followed, since Kubernetes and certificate managers replace files by them.
    guarded::read_linked(path, MAX_BYTES).map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SubnetError {
    SubnetError::Refused { what: format!("TLS file {} can't be used", path.display()), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_core::error::chain;

    const KEY: &str = "Marker-Of-Secret";

    /// Whether a text has a part of the key that is left when one byte of it is another, as text or as numbers.
    fn tells(text: &str) -> bool {
        let parts = (0..=KEY.len() - 8).map(|at| &KEY[at..at + 8]);
        let numbers = |part: &str| format!("{:?}", part.as_bytes()).trim_matches(['[', ']']).to_owned();
        parts.clone().any(|part| text.contains(part)) || parts.map(numbers).any(|part| text.contains(&part))
    }

    /// Cut anywhere, and with any byte replaced by one that means something in PEM.
    #[test]
    fn a_damaged_key_is_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.pem");
        let files = EtcdTls { ca_file: None, cert_file: Some(file.clone()), key_file: Some(file.clone()) };
        let text = format!("-----BEGIN PRIVATE KEY-----\n{KEY}\n{KEY}\n-----END PRIVATE KEY-----\n");
        let check = |text: &str| {
            fs::write(&file, text).unwrap();
            for error in [private_key(&file).map(drop), certificates(&file).map(drop), load(&files).map(drop)]
            {
                let Err(error) = error else { continue };
                let said = format!("{error:?} {}", chain(&error));
                assert!(said.contains("key.pem") && !tells(&said), "{text}\nis told: {said}");
            }
        };
        (0..=text.len()).for_each(|cut| check(&text[..cut]));
        for at in 0..text.len() {
            for byte in ["x", "-", "\n", " ", ":", "="] {
                check(&format!("{}{byte}{}", &text[..at], &text[at + 1..]));
            }
        }
    }
}
