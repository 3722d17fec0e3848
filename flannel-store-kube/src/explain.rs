//! Texts for the client library's errors. The library's own texts may quote a kubeconfig, a key, a token, the output of
//! a program that makes tokens, or the URL of a proxy with its password. So for files and values with credentials only
//! the field and the position are shown.

use std::error::Error as _;

use flannel_core::error::chain;
use flannel_core::secret::without_user_info;
use kube::Error;
use kube::client::{AuthError, RustlsTlsError};
use kube::config::{KubeconfigError, LoadDataError};

/// Why a client can't be made, or a call failed.
pub(super) fn explain(error: &Error) -> String {
    match error {
        Error::Auth(error) => explain_login(error),
        Error::RustlsTls(error) => explain_tls(error),
        Error::InferKubeconfig(error) => explain_kubeconfig(error),
        Error::ProxyProtocolUnsupported { .. } | Error::ProxyProtocolDisabled { .. } => {
            "the proxy (proxy-url of the kubeconfig, or HTTPS_PROXY) can't be used: this build reaches API servers only \
             directly"
                .to_owned()
        }
        other => {
            let mut cause = other.source();
            while let Some(error) = cause {
                if let Some(error) = error.downcast_ref::<AuthError>() {
                    return explain_login(error);
                }
                cause = error.source();
            }
            without_user_info(&chain(other))
        }
    }
}

/// Why a kubeconfig can't be used.
pub(super) fn explain_kubeconfig(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(error, _) => error.to_string(),
        KubeconfigError::Parse(error) => match error.location() {
            Some(place) => format!("it is no kubeconfig: line {}, column {}", place.line(), place.column()),
            None => "it is no kubeconfig".to_owned(),
        },
        KubeconfigError::LoadContext(_) => "contexts: the current context is not among them".to_owned(),
        KubeconfigError::LoadClusterOfContext(_) => {
            "clusters: that of the current context is not among them".to_owned()
        }
        KubeconfigError::ParseClusterUrl(error) => format!("server: {error}"),
        KubeconfigError::ParseProxyUrl(error) => format!("proxy-url, or HTTPS_PROXY: {error}"),
        KubeconfigError::LoadCertificateAuthority(error) => explain_data("certificate-authority", error),
        KubeconfigError::LoadClientCertificate(error) => explain_data("client-certificate", error),
        KubeconfigError::LoadClientKey(error) => explain_data("client-key", error),
        KubeconfigError::ParseCertificates(_) => "certificate-authority: no PEM certificates".to_owned(),
        // The texts of these don't depend on the file's content.
        KubeconfigError::CurrentContextNotSet
        | KubeconfigError::KindMismatch
        | KubeconfigError::ApiVersionMismatch
        | KubeconfigError::FindPath
        | KubeconfigError::MissingClusterUrl => error.to_string(),
    }
}

/// Why a certificate or key of a kubeconfig can't be read. By a mistake the path may consist of several lines.
fn explain_data(field: &str, error: &LoadDataError) -> String {
    match error {
        LoadDataError::DecodeBase64(_) => format!("{field}-data: no base64"),
        LoadDataError::ReadFile(error, _) => format!("the file of {field}: {error}"),
        LoadDataError::NoBase64DataOrFile => format!("{field}: neither a file nor data"),
    }
}

fn explain_login(error: &AuthError) -> String {
    match error {
        AuthError::InvalidBasicAuth(_) => "username and password: not to be sent in a header".to_owned(),
        AuthError::InvalidBearerToken(_) => {
            "the token has characters that no header takes, such as a line break".to_owned()
        }
        AuthError::ReadTokenFile(error, _) => format!("the token's file: {error}"),
        AuthError::AuthExecStart(error) => {
            format!("the program of exec, which makes tokens, can't be run: {error}")
        }
        AuthError::AuthExecRun { out, .. } => {
            format!("the program of exec, which makes tokens, failed: {}", out.status)
        }
        AuthError::AuthExecParse(_) | AuthError::ExecPluginFailed => {
            "the program of exec, which makes tokens, wrote no ExecCredential with a status".to_owned()
        }
        AuthError::MissingCommand => "exec: no command".to_owned(),
        AuthError::ExecMissingClusterInfo => "exec: provideClusterInfo, but there is no cluster".to_owned(),
        AuthError::NoValidNativeRootCA(error) => format!("this machine has no CA certificates: {error}"),
        _ => "no token by auth-provider or exec of the kubeconfig".to_owned(),
    }
}

fn explain_tls(error: &RustlsTlsError) -> String {
    match error {
        RustlsTlsError::InvalidIdentityPem(_) => "client-certificate or client-key: no PEM".to_owned(),
        RustlsTlsError::MissingPrivateKey | RustlsTlsError::UnknownPrivateKeyFormat => {
            "client-key: no PEM private key (PKCS8, or RSA as PKCS1)".to_owned()
        }
        RustlsTlsError::MissingCertificate => "client-certificate: no PEM certificate".to_owned(),
        RustlsTlsError::InvalidPrivateKey(_) => "client-key: not the key of client-certificate".to_owned(),
        RustlsTlsError::AddRootCertificate(_) => {
            "certificate-authority: a certificate that is none".to_owned()
        }
        RustlsTlsError::NoValidNativeRootCA(error) => format!("this machine has no CA certificates: {error}"),
        RustlsTlsError::InvalidServerName(_) => "tls-server-name: no host name".to_owned(),
    }
}
