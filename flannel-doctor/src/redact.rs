//! Removes secrets from text that is going to be shown to others: URLs, flags, variables, JSON, YAML, headers, keys. Pure.
//!
//! It looks for names rather than for secrets, since a password can be any text: whatever stands where a password is
//! usually given is hidden. It hides too much rather than too little.

use std::borrow::Cow;

use regex::{Captures, Regex};
use serde_json::Value;

/// The text in place of a secret.
pub const HIDDEN: &str = "***";

/// A name whose value is secret, as part of a pattern. Names of other things must not match: a match takes the value with
/// it, and another name with its secret may be in there.
const NAME: &str = "(?i:[a-z0-9_.-]*(?:pass[-_.]?(?:word|phrase|wd)|secret|token|psk|pre[-_.]?shared[-_.]?key|private[-_.]?key|\
                    api[-_.]?key|access[-_.]?key|credential|client[-_.]?(?:key|certificate)[-_.]?data|authorization)[a-z0-9_.-]*)";
/// Names that only look like it: of counts, times and paths, which an operator wants to see.
const HARMLESS: [&str; 4] = ["tokenfile", "passwordfile", "secretname", "keyfile"];

/// Removes secrets. Keep one: it has compiled patterns.
#[derive(Debug, Clone)]
pub struct Redactor {
    /// The whole name of a secret.
    name: Regex,
    /// A block of PEM with a private key, also one that is cut off.
    pem: Regex,
    /// The user info of a URL.
    url: Regex,
    /// `Bearer` and `Basic` with what follows.
    scheme: Regex,
    /// A JSON web token.
    jwt: Regex,
    /// A flag with its value as the next word.
    flag: Regex,
    /// A header whose value is one, to the end of the line or of the quotes.
    header: Regex,
    /// A user with a password behind a colon, as the value of a flag of curl, etcdctl and others.
    user: Regex,
    /// A name and a value as words, as `wg` and `passwd` have them.
    words: Regex,
    /// A name and a value behind `=` or `:`, perhaps quoted.
    pair: Regex,
    /// A line that is a name and its value, which may have spaces, as in YAML and in files of variables.
    line: Regex,
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
        let regex = |text: &str| {
            Regex::new(&text.replace("NAME", NAME)).expect("the pattern is a constant that a test compiles")
        };
        Self {
            name: regex(r"\A(?:NAME)\z"),
            pem: regex(r"(?s)-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END [A-Z ]*-----|\z)"),
            url: regex(r#"([A-Za-z][A-Za-z0-9+.\-]*://)[^\s"'`]*@"#),
            scheme: regex(r"\b((?i:bearer)|Basic)(\s+)[A-Za-z0-9._~+/=\-]{6,}"),
            jwt: regex(r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]*)?"),
            flag: regex(r#"(--?(?:NAME))(["']?[\s\x00,]+)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s\x00]+)"#),
            header: regex(
                r#"((?i:(?:proxy-)?authorization|(?:set-)?cookie2?|x-api-key|x-auth-[a-z-]+)[ \t]*:[ \t]*)[^"'\r\n\\]+"#,
            ),
            user: regex(
                r#"((?:^|[\s"',\[\x00])(?:-u|-U|--user|--proxy-user)(?:["']?[=\s\x00,]+["']?)?)([^\s:"'\x00,=]+:)[^\s"'\x00]+"#,
            ),
            words: regex(
                r#"((?:^|[^/\w.\-])(?i:passwd|passw?ord|passphrase|private-key|preshared-key|psk)[ \t\x00]+)("[^"\n]*"|'[^'\n]*'|[^\s\x00"',;]+)"#,
            ),
            pair: regex(
                r#"(NAME)(\\*["']?[ \t]*[=:][ \t]*)("(?:[^"\\]|\\.)*"|'[^']*'|\\+"(?:[^"\\]|\\+[^"\\])*\\+"|[^\s\x00]+)"#,
            ),
            line: regex(r"(?m)^([ \t]*(?:- |export )?)(NAME)([ \t]*[=:][ \t]*)(\S.*)$"),
            block: regex(r"(?m)^([ \t-]*)(NAME):[ \t]*(?:[|>][+\-0-9]*)?[ \t]*\n((?:[ \t]+.*(?:\n|\z))+)"),
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

    /// Hides what stands behind a word that names a password. In sentences other words do.
    fn words(&self, text: &str) -> String {
        let hide = |found: &Captures<'_>| {
            if SENTENCE.contains(&&*found[2].to_ascii_lowercase()) || found[2] == *HIDDEN {
                return found[0].to_owned();
            }
            let quote = quote_of(&found[2]);
            format!("{}{quote}{HIDDEN}{quote}", &found[1])
        };
        self.words.replace_all(text, hide).into_owned()
    }

    /// Removes secrets from a JSON value: values of secret names, and secrets in texts.
    pub fn value(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if (self.is_secret(name) || is_cookie(name)) && !value.is_null() {
                        *value = HIDDEN.into();
                    } else {
                        self.value(value);
                    }
                }
            }
            Value::Array(items) => {
                let mut is_next = Next::Any;
                for item in items {
                    // A flag or a word, and its value as the next argument.
                    let next = item.as_str().map_or(Next::Any, |text| self.next(text));
                    match std::mem::replace(&mut is_next, next) {
                        Next::Any => self.value(item),
                        Next::Secret => *item = HIDDEN.into(),
                        Next::User => match item.as_str().and_then(|text| text.split_once(':')) {
                            Some((name, _)) => *item = format!("{name}:{HIDDEN}").into(),
                            None => self.value(item),
                        },
                    }
                }
            }
            Value::String(text) => {
                *text = match text.split_once('=') {
                    // An argument or a variable as a whole, with a value that may have spaces.
                    Some((name, _)) if self.is_secret(name) => format!("{name}={HIDDEN}"),
                    // JSON in a text, as a node's annotations have it.
                    _ => self.text(text),
                };
            }
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
        let text = self.url.replace_all(&text, |found: &Captures<'_>| format!("{}{HIDDEN}@", &found[1]));
        let text = self.header.replace_all(&text, |found: &Captures<'_>| format!("{}{HIDDEN}", &found[1]));
        let text = self
            .user
            .replace_all(&text, |found: &Captures<'_>| format!("{}{}{HIDDEN}", &found[1], &found[2]));
        let text = self
            .scheme
            .replace_all(&text, |found: &Captures<'_>| format!("{}{}{HIDDEN}", &found[1], &found[2]));
        let text = self.jwt.replace_all(&text, HIDDEN);
        let named = |found: &Captures<'_>, name: &str, shown: String| {
            if is_harmless(name) { found[0].to_owned() } else { shown }
        };
        let text = self.block.replace_all(&text, |found: &Captures<'_>| {
            named(found, &found[2], format!("{}{}: {HIDDEN}\n", &found[1], &found[2]))
        });
        let mut text = self
            .line
            .replace_all(&text, |found: &Captures<'_>| {
                // What quotes end is for the next pattern, which keeps what is behind them.
                let is_quoted =
                    found[4].starts_with(['"', '\'']) && found[4].trim_end().ends_with(['"', '\'']);
                let shown = format!("{}{}{}{HIDDEN}", &found[1], &found[2], &found[3]);
                if is_quoted { found[0].to_owned() } else { named(found, &found[2], shown) }
            })
            .into_owned();
        for pattern in [&self.flag, &self.pair] {
            let hide = |found: &Captures<'_>| {
                let quote = quote_of(&found[3]);
                named(found, &found[1], format!("{}{}{quote}{HIDDEN}{quote}", &found[1], &found[2]))
            };
            text = pattern.replace_all(&text, hide).into_owned();
        }
        self.words(&text)
    }

    /// What follows an argument.
    fn next(&self, argument: &str) -> Next {
        match argument {
            "-u" | "-U" | "--user" | "--proxy-user" => Next::User,
            "private-key" | "preshared-key" => Next::Secret,
            _ if argument.starts_with('-') && !argument.contains(['=', ' ']) && self.is_secret(argument) => {
                Next::Secret
            }
            _ => Next::Any,
        }
    }

    /// Whether a value with this name is a secret.
    fn is_secret(&self, name: &str) -> bool {
        self.name.is_match(name) && !is_harmless(name)
    }
}

/// What an argument behind another one is.
enum Next {
    Any,
    Secret,
    /// A user, and perhaps a password behind a colon.
    User,
}

/// Words that follow one for a password in a sentence, and are none.
const SENTENCE: [&str; 30] = [
    "is",
    "was",
    "are",
    "for",
    "of",
    "and",
    "or",
    "not",
    "in",
    "has",
    "to",
    "from",
    "must",
    "can",
    "can't",
    "may",
    "that",
    "with",
    "without",
    "on",
    "by",
    "file",
    "files",
    "authentication",
    "auth",
    "login",
    "at",
    "which",
    "needs",
    "required",
];

/// Headers that are kept as values of JSON. Parts of names, such as `tcp_syncookies`, are no secrets.
fn is_cookie(name: &str) -> bool {
    ["cookie", "set-cookie"].iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// What a value begins and ends with: a quote, perhaps with backslashes in front of it, or nothing.
fn quote_of(value: &str) -> &str {
    let quote = value.find(|letter| letter != '\\').map(|at| &value[..=at]);
    quote.filter(|quote| quote.ends_with(['"', '\''])).unwrap_or("")
}

/// Whether a name that looks like that of a secret is that of a file or an object with one.
fn is_harmless(name: &str) -> bool {
    let name: String =
        name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    HARMLESS.iter().any(|part| name.ends_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hunter2hunter2";

    #[test]
    fn a_password_is_hidden_wherever_it_is_given() {
        let redactor = Redactor::new();
        for text in [
            "--etcd-password=hunter2hunter2 -v=1",
            "flanneld --etcd-password hunter2hunter2 --ip-masq",
            "flanneld\0--etcd-password\0hunter2hunter2\0--ip-masq",
            r#""args":["--etcd-password","hunter2hunter2"]"#,
            r#"{"args":["-v","--etcd-password","hunter2hunter2"]}"#,
            "FLANNELD_ETCD_PASSWORD=hunter2hunter2",
            "export FLANNELD_ETCD_PASSWORD='hunter2hunter2'",
            "endpoints https://root:hunter2hunter2@10.0.0.1:2379,https://10.0.0.2:2379",
            "GET https://10.0.0.1/?x=1&access_token=hunter2hunter2&y=2",
            "authorization: Bearer hunter2hunter2",
            "Proxy-Authorization: Basic hunter2hunter2==",
            r#"{"Backend":{"Type":"wireguard","PSK":"hunter2hunter2"}}"#,
            r#"{"a":[{"token":"hunter2hunter2"},{"clientSecret":{"x":"hunter2hunter2"}}]}"#,
            r#"{"annotation":"{\"PSK\":\"hunter2hunter2\"}"}"#,
            r#"msg="config {\"PSK\":\"hunter2hunter2\"} read""#,
            "users:\n- name: a\n  user:\n    token: hunter2hunter2\n    password: \"hunter2hunter2\"\n",
            "    client-key-data: hunter2hunter2\n    client-certificate-data: hunter2hunter2\n",
            "    token: |\n      hunter2hunter2\n      hunter2hunter2\n    name: x\n",
            "[Peer]\nPresharedKey = hunter2hunter2=\n[Interface]\nPrivateKey = hunter2hunter2=\n",
            "net.ipv6.conf.all.stable_secret = hunter2hunter2",
            "-----BEGIN EC PRIVATE KEY-----\nhunter2hunter2\n-----END EC PRIVATE KEY-----\n",
            "FLANNELD_ETCD_PASSWORD=spaced hunter2hunter2",
            "  password: spaced hunter2hunter2\n  user: x\n",
            "PASSWORD=a;hunter2hunter2",
            "etcd at https://root:a/hunter2hunter2@10.0.0.1:2379: refused",
            r#"{"args":["--etcd-password=spaced hunter2hunter2"]}"#,
            r#"log: {\\\"PSK\\\":\\\"hunter2hunter2\\\",\\\"x\\\":1}"#,
            "-----BEGIN PRIVATE KEY-----\nhunter2hunter2",
            "wifi.psk=hunter2hunter2",
            "Environment=FLANNELD_ETCD_PASSWORD=hunter2hunter2",
            "msg=\"tried with password=hunter2hunter2 once\"",
            "users:\n- user:\n    token: hunter2hunter2\n",
            "- token:\n    hunter2hunter2\n",
            "passwd hunter2hunter2",
            "etcdctl --user name:hunter2hunter2 get /",
            "etcdctl --user=name:hunter2hunter2 get /",
            "curl -u a:hunter2hunter2 https://10.0.0.1/",
            "curl -ua:hunter2hunter2 https://10.0.0.1/",
            r#""args":["curl","-u","a:hunter2hunter2"]"#,
            r#"{"args":["curl","-u","a:hunter2hunter2"]}"#,
            "Cookie: session=hunter2hunter2",
            "Cookie: a=b; session=hunter2hunter2",
            "msg=\"sent\" header=\"Set-Cookie: a=b; session=hunter2hunter2; Path=/\"",
            r#"{"headers":{"Cookie":"session=hunter2hunter2"}}"#,
            "Authorization: Digest username=x, response=hunter2hunter2",
            "wg set wg0 private-key hunter2hunter2",
            "wg set wg0 peer x preshared-key hunter2hunter2",
            r#"["wg","set","wg0","private-key","hunter2hunter2"]"#,
            "wg\0set\0wg0\0private-key\0hunter2hunter2\0",
            "logged in with password hunter2hunter2 at last",
        ] {
            let shown = redactor.text(text);
            assert!(!shown.contains(SECRET), "{text:?} became {shown:?}");
            assert!(shown.contains(HIDDEN), "{text:?} became {shown:?}");
            assert_eq!(redactor.text(&shown), shown, "once is enough");
        }
        let token = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJzdWIiOiJ4In0.c2lnbmF0dXJl";
        assert_eq!(redactor.text(&format!("use {token} now")), format!("use {HIDDEN} now"));
        let known = Redactor::new().knowing([SECRET.to_owned(), "abc".to_owned()]);
        assert_eq!(known.text("login failed for hunter2hunter2, abc"), "login failed for ***, abc");
    }

    #[test]
    fn the_rest_stays() {
        let redactor = Redactor::new();
        for text in [
            "default via 192.0.2.1 dev eth0 proto dhcp src 192.0.2.9 metric 100",
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
            "-A FORWARD -s 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT",
            "chain postrtg { type nat hook postrouting priority srcnat; policy accept; }",
            "etcd at http://10.0.0.1:2379: connection refused",
            "--etcd-keyfile=/etc/key.pem --kubeconfig-file /etc/kubeconfig",
            r#"{"Backend":{"Type":"vxlan"},"Network":"10.244.0.0/16"}"#,
            "level=info msg=\"basic checks are done\" subnet=10.244.1.0/24",
            "net.ipv4.tcp_syncookies = 1",
            "the password is wrong; /etc/passwd can't be read",
            "--user root --group root",
        ] {
            assert_eq!(redactor.text(text), text);
        }
        let many = "{\n  \"version\": 1,\n  \"verdict\": \"ok\"\n}";
        let back: Value = serde_json::from_str(&redactor.text(many)).unwrap();
        assert_eq!(back, serde_json::from_str::<Value>(many).unwrap());
    }
}
