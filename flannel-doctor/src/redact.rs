//! Removes secrets from text that is going to be shown to others: URLs, flags, variables, JSON, YAML, headers, keys. Pure.
//!
//! It looks for names rather than for secrets, since a password can be any text: whatever stands where a password is
//! usually given is hidden. It hides too much rather than too little.

use std::borrow::Cow;

use regex::{Captures, Regex};
use serde_json::Value;

/// The text in place of a secret.
pub const HIDDEN: &str = "***";

/// Parts of names whose values are secret, in small letters without separators.
const NAMES: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "psk",
    "presharedkey",
    "privatekey",
    "apikey",
    "accesskey",
    "credential",
    "clientkeydata",
    "clientcertificatedata",
    "authorization",
];
/// Names that only look like it: of counts, times and paths, which an operator wants to see.
const HARMLESS: [&str; 4] = ["tokenfile", "passwordfile", "secretname", "keyfile"];

/// Removes secrets. Keep one: it has compiled patterns.
#[derive(Debug, Clone)]
pub struct Redactor {
    /// A block of PEM with a private key, also one that is cut off.
    pem: Regex,
    /// The user info of a URL.
    url: Regex,
    /// A parameter of a URL.
    parameter: Regex,
    /// `Bearer` and `Basic` with what follows.
    scheme: Regex,
    /// A JSON web token.
    jwt: Regex,
    /// A flag with its value as the next word.
    flag: Regex,
    /// A name and a value behind `=` or `:`, perhaps quoted.
    pair: Regex,
    /// A name whose value is a block of YAML on the next lines.
    block: Regex,
    /// Passwords that the caller knows.
    known: Vec<String>,
}

impl Default for Redactor {
    fn default() -> Self {
        Self::new()
    }
}

impl Redactor {
    /// One that knows no password.
    pub fn new() -> Self {
        let regex = |text: &str| Regex::new(text).expect("the pattern is a constant that a test compiles");
        Self {
            pem: regex(r"(?s)-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END [A-Z ]*-----|\z)"),
            url: regex(r#"([A-Za-z][A-Za-z0-9+.\-]*://)[^\s/"'`]*@"#),
            parameter: regex(r#"([?&][^\s=&"']*)=([^\s&"'#]+)"#),
            scheme: regex(r#"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=\-]{6,}"#),
            jwt: regex(r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]*)?"),
            flag: regex(
                r#"(--?[A-Za-z][A-Za-z0-9_.\-]*)(["',]*(?:\s+|\x00)["']?)("[^"]*"|'[^']*'|[^\s\x00"',\]]+)"#,
            ),
            pair: regex(
                r#"([A-Za-z][A-Za-z0-9_.\-]*)(\\?["']?\s*[=:]\s*)("(?:[^"\\]|\\.)*"|'[^']*'|\\"(?:[^"\\]|\\[^"])*\\"|[^\s\x00,;}\])"']+)"#,
            ),
            block: regex(
                r"(?m)^([ \t]*)([A-Za-z][A-Za-z0-9_.\-]*):[ \t]*[|>][+\-0-9]*[ \t]*\n((?:[ \t]+.*\n?|[ \t]*\n)+)",
            ),
            known: Vec::new(),
        }
    }

    /// Also hides these texts wherever they are, if they have at least four letters.
    #[must_use]
    pub fn knowing(mut self, secrets: impl IntoIterator<Item = String>) -> Self {
        self.known.extend(secrets.into_iter().filter(|secret| secret.len() >= 4));
        // A longer one may contain a shorter one.
        self.known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        self
    }

    /// The text without secrets. A text that is one JSON value stays one.
    pub fn text(&self, text: &str) -> String {
        if text.trim_start().starts_with(['{', '['])
            && let Ok(mut value) = serde_json::from_str::<Value>(text)
        {
            self.value(&mut value);
            let pretty = text.trim_end().contains('\n');
            let shown =
                if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            return shown.unwrap_or_else(|_| HIDDEN.to_owned());
        }
        self.plain(text)
    }

    /// Removes secrets from a JSON value: values of secret names, and secrets in texts.
    pub fn value(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if is_secret(name) && !value.is_null() {
                        *value = HIDDEN.into()
                    } else {
                        self.value(value)
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(item)),
            // JSON in a text, as a node's annotations have it, and flags in a list of arguments.
            Value::String(text) => *text = self.text(text),
            _ => {}
        }
    }

    fn plain(&self, text: &str) -> String {
        let mut text = Cow::Borrowed(text);
        for secret in &self.known {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), HIDDEN).into();
            }
        }
        let text =
            self.pem.replace_all(&text, |found: &Captures<'_>| format!("-----{}: {HIDDEN}-----", &found[1]));
        let text = self.block.replace_all(&text, |found: &Captures<'_>| {
            if is_secret(&found[2]) {
                format!("{}{}: {HIDDEN}\n", &found[1], &found[2])
            } else {
                found[0].to_owned()
            }
        });
        let text = self.url.replace_all(&text, |found: &Captures<'_>| format!("{}{HIDDEN}@", &found[1]));
        let named = |found: &Captures<'_>, shown: String| {
            if is_secret(&found[1]) { shown } else { found[0].to_owned() }
        };
        let text = self
            .parameter
            .replace_all(&text, |found: &Captures<'_>| named(found, format!("{}={HIDDEN}", &found[1])));
        let text = self
            .scheme
            .replace_all(&text, |found: &Captures<'_>| format!("{}{}{HIDDEN}", &found[1], &found[2]));
        let text = self.jwt.replace_all(&text, HIDDEN);
        let text = self.flag.replace_all(&text, |found: &Captures<'_>| {
            named(found, format!("{}{}{HIDDEN}", &found[1], &found[2]))
        });
        let text = self.pair.replace_all(&text, |found: &Captures<'_>| {
            let quote = if found[3].starts_with('"') { "\"" } else { "" };
            named(found, format!("{}{}{quote}{HIDDEN}{quote}", &found[1], &found[2]))
        });
        text.into_owned()
    }
}

/// Whether a value with this name is a secret.
fn is_secret(name: &str) -> bool {
    let name: String =
        name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    NAMES.iter().any(|part| name.contains(part)) && !HARMLESS.iter().any(|part| name.ends_with(part))
}
