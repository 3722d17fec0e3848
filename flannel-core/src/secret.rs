//! Types for credentials and for texts that may contain some. Their output never shows a credential.
//!
//! An error text of a parser may quote its input. So for files and values with credentials only path, line and column
//! are shown. URLs are shown without user info.

use std::fmt;

/// The text in place of a hidden part.
const HIDDEN: &str = "***";

/// A password or token. No output shows it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// The credential itself, for logging in.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// The URL of a server as the operator wrote it, which may be no valid URL. Its output leaves out the user info; where
/// that part can't be told from the rest, it shows nothing.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ServerUrl(String);

impl ServerUrl {
    /// The URL itself, for connecting.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The host, without credentials, port and brackets.
    pub fn host(&self) -> Option<&str> {
        let text = self.0.trim();
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host_and_port = authority.rsplit('@').next().unwrap_or_default();
        let host = match host_and_port.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host_and_port.rsplit_once(':').map_or(host_and_port, |(host, _)| host),
        };
        Some(host).filter(|host| !host.is_empty())
    }

    /// Whether its output leaves something out.
    pub fn hides(&self) -> bool {
        self.0.contains('@') || self.to_string().contains(HIDDEN)
    }
}

impl<T: Into<String>> From<T> for ServerUrl {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.trim();
        if text.is_empty() {
            return Ok(());
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        // A path without a host is that of a socket.
        let is_known = is_host(host) || (host.is_empty() && scheme.is_some());
        if !is_known || !scheme.is_none_or(is_scheme) {
            return f.write_str(HIDDEN);
        }
        let path = if path.contains(['@', '?', '#']) { "/***" } else { path.trim_end_matches('/') };
        let (scheme, mark) = scheme.map_or(("", ""), |scheme| (scheme, "://"));
        write!(f, "{scheme}{mark}{host}{path}")
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

fn is_scheme(text: &str) -> bool {
    (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Whether a text is a host, with or without a port, and nothing else.
fn is_host(text: &str) -> bool {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = if let Some((host, rest)) = bracketed {
        (host, rest.strip_prefix(':').or(rest.is_empty().then_some("")))
    } else {
        let (host, port) = text.split_once(':').unwrap_or((text, ""));
        (host, Some(port))
    };
    let is_name = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'.' | b'-' | b'_')
            || (bracketed.is_some() && byte == b':')
    };
    let is_port = |port: &str| port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    !host.is_empty() && host.bytes().all(is_name) && port.is_some_and(is_port)
}

/// A foreign text, such as an error of a client library, without the user info of URLs in it.
pub fn without_user_info(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        let end = after.find(|it: char| it.is_whitespace() || matches!(it, '"' | '\'' | '`' | '<' | '>'));
        let (url, next) = after.split_at(end.unwrap_or(after.len()));
        shown.extend([before, "://", url.rsplit_once('@').map_or(url, |(_, host)| host)]);
        rest = next;
    }
    shown + rest
}

/// An error about a JSON text that may contain credentials, by position only: serde's own text quotes values of a wrong
/// type.
pub fn json_error(error: &serde_json::Error) -> String {
    if error.is_data() {
        return format!(
            "a value of another kind than expected at line {} column {}",
            error.line(),
            error.column()
        );
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_what_is_connected_to() {
        for (url, wanted) in [
            ("http://192.0.2.1:2379", Some("192.0.2.1")),
            ("https://etcd.example.org:2379", Some("etcd.example.org")),
            ("http://me:se@cret@192.0.2.1:2379/path@x", Some("192.0.2.1")),
            ("http://[2001:db8::1]:2379", Some("2001:db8::1")),
            ("https://me:secret@[2001:db8::1]/", Some("2001:db8::1")),
            ("192.0.2.1:2379", Some("192.0.2.1")),
            (" http://192.0.2.1 ", Some("192.0.2.1")),
            ("http://", None),
            ("", None),
        ] {
            assert_eq!(ServerUrl::from(url).host(), wanted, "{url}");
        }
    }

    #[test]
    fn urls_are_shown_without_user_info() {
        for (url, shown) in [
            ("https://10.0.0.1:6443", "https://10.0.0.1:6443"),
            ("http://[fd00::1]:8080/", "http://[fd00::1]:8080"),
            ("http://[fd00::1]", "http://[fd00::1]"),
            ("https://user:secret@host/path/", "https://host/path"),
            ("https://secret@host", "https://host"),
            ("localhost:2379", "localhost:2379"),
            ("me:secret@localhost:2379", "localhost:2379"),
            ("unix:///run/etcd.sock", "unix:///run/etcd.sock"),
            ("http://me:secret", "***"),
            ("http://me:se/cret@host", "***"),
            ("http://me/secret@host", "http://me/***"),
            ("http://host/?token=secret", "http://host/***"),
            ("http://me:secret@", "http://"),
            ("http://me:secret host", "***"),
            ("", ""),
        ] {
            let given = ServerUrl::from(url);
            assert_eq!(given.to_string(), shown);
            assert_eq!(format!("{given:?}"), format!("\"{shown}\""));
            assert_eq!(given.reveal(), url);
        }
        assert!(ServerUrl::from("http://a@b").hides() && !ServerUrl::from("http://b:1").hides());
    }

    /// Cut anywhere, and with any byte replaced by one that means something in an URL, a password is not shown.
    #[test]
    fn a_mistyped_url_shows_no_password() {
        let (url, password) = ("https://me:Marker-Of-Secret@api.example:6443/base", "Marker-Of-Secret");
        let at = url.find(password).unwrap();
        // The longest part of it that stays when a byte is replaced.
        let is_told = |text: &str| (0..=password.len() - 8).any(|at| text.contains(&password[at..at + 8]));
        assert!(is_told(url));
        for cut in 0..=url.len() {
            let shown = ServerUrl::from(&url[..cut]).to_string();
            assert!(!is_told(&shown), "{:?} is shown as {shown:?}", &url[..cut]);
            if cut > at + password.len() {
                assert!(!is_told(&without_user_info(&url[..cut])));
            }
        }
        for at in 0..url.len() {
            for byte in ["/", ":", "@", "?", "#", " ", "x", "0", "[", "]", "%", "\\", "\n", "é", "\""] {
                let mut text = url.to_owned();
                text.replace_range(at..=at, byte);
                let shown = ServerUrl::from(&*text).to_string();
                assert!(!is_told(&shown), "{text:?} is shown as {shown:?}");
            }
        }
    }

    #[test]
    fn errors_of_others_are_shown_without_user_info() {
        for (text, shown) in [
            ("no URL", "no URL"),
            ("GET http://a:b@c/d: refused", "GET http://c/d: refused"),
            ("\"http://a:b@c\" and https://x@y z@w", "\"http://c\" and https://y z@w"),
            ("://@", "://"),
        ] {
            assert_eq!(without_user_info(text), shown);
        }
    }

    #[test]
    fn errors_of_json_quote_nothing() {
        let error = |text: &str| json_error(&serde_json::from_str::<Vec<u8>>(text).unwrap_err());
        assert_eq!(error("[\n\"hush\"]"), "a value of another kind than expected at line 2 column 6");
        assert_eq!(error("[\"hush"), "EOF while parsing a string at line 1 column 6");
    }

    #[test]
    fn a_secret_stays_out_of_debug_output() {
        let secret = Secret::from("hush");
        assert_eq!((format!("{secret:?}").as_str(), secret.reveal()), ("(hidden)", "hush"));
    }
}
