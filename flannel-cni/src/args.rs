//! The parameters that the runtime passes in environment variables: the verb and the attachment. Specification: CNI
//! 1.1.0, section 2, "Parameters".

use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::{CniError, code};

/// The longest name of an interface in bytes (`IFNAMSIZ` less its end mark).
const MAX_IFNAME: usize = 15;

/// A CNI verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Check that an attachment is right.
    Check,
    /// Remove leftovers that belong to no attachment.
    Gc,
    /// Say whether an ADD would succeed.
    Status,
    /// List the supported versions.
    Version,
}

impl Verb {
    /// Its name in `CNI_COMMAND`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let all = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];
        all.into_iter().find(|verb| verb.name() == name)
    }

    fn names_an_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// One interface of one container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// `CNI_CONTAINERID`: letters, digits, `_`, `.`, `-`, and the first is a letter or a digit.
    container_id: String,
    /// `CNI_IFNAME`: a name that an interface can have.
    ifname: String,
}

impl Attachment {
    /// Checks both as the specification demands. Then they are safe as parts of a file name.
    pub fn new(container_id: &str, ifname: &str) -> Result<Self, CniError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let starts_well = container_id.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts_well || !container_id.chars().all(is_plain) {
            return Err(invalid(format!("invalid characters in CNI_CONTAINERID {container_id:?}")));
        }
        let is_odd = |c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control();
        if ifname.is_empty()
            || ifname.len() > MAX_IFNAME
            || matches!(ifname, "." | "..")
            || ifname.contains(is_odd)
        {
            return Err(invalid(format!("CNI_IFNAME {ifname:?} is no name for an interface")));
        }
        Ok(Self { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
    }

    /// The container.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// The interface in it.
    pub fn ifname(&self) -> &str {
        &self.ifname
    }
}

/// A call's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// What to do.
    pub verb: Verb,
    /// The attachment; only ADD, DEL and CHECK have one.
    pub attachment: Option<Attachment>,
    /// The folders of `CNI_PATH`, in which plugins are searched.
    pub path: Vec<PathBuf>,
}

impl Args {
    /// Reads and checks the parameters. `lookup` returns the value of a variable; the program's reads its environment.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let text = |name: &str| match lookup(name).map(OsString::into_string) {
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) => Err(invalid(format!("{name} isn't UTF-8"))),
            None => Ok(String::new()),
        };
        let name = text("CNI_COMMAND")?;
        let verb = Verb::parse(&name).ok_or_else(|| invalid(format!("unknown CNI_COMMAND: {name:?}")))?;
        if verb == Verb::Version {
            return Ok(Self { verb, attachment: None, path: Vec::new() });
        }
        let required: &[&str] = match verb {
            Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Verb::Gc | Verb::Status | Verb::Version => &["CNI_PATH"],
        };
        let is_missing = |name: &&&str| lookup(name).is_none_or(|value| value.is_empty());
        let missing: Vec<&str> = required.iter().filter(is_missing).copied().collect();
        if !missing.is_empty() {
            let error = invalid(format!("required env variables [{}] missing", missing.join(",")));
            return Err(error.with_details(format!("{name} needs them; it is the runtime that sets them")));
        }
        let attachment = if verb.names_an_attachment() {
            Some(Attachment::new(&text("CNI_CONTAINERID")?, &text("CNI_IFNAME")?)?)
        } else {
            None
        };
        let path = lookup("CNI_PATH").unwrap_or_default();
        let path = std::env::split_paths(&path).filter(|folder| !folder.as_os_str().is_empty());
        Ok(Self { verb, attachment, path: path.collect() })
    }
}

fn invalid(msg: String) -> CniError {
    CniError::new(code::INVALID_ENVIRONMENT, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Args, CniError> {
        Args::read(|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn every_verb_has_its_parameters() {
        let all =
            [("CNI_CONTAINERID", "c"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/a::/b")];
        for (verb, needs) in [
            ("ADD", vec!["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
            ("CHECK", vec!["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
            ("DEL", vec!["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]),
            ("GC", vec!["CNI_PATH"]),
            ("STATUS", vec!["CNI_PATH"]),
            ("VERSION", vec![]),
        ] {
            let mut vars = vec![("CNI_COMMAND", verb)];
            vars.extend(all.iter().filter(|(key, _)| needs.contains(key)));
            let args = read(&vars).unwrap();
            assert_eq!(args.verb.name(), verb);
            assert_eq!(args.attachment.is_some(), needs.len() > 1);
            if needs.contains(&"CNI_PATH") {
                assert_eq!(args.path, [PathBuf::from("/a"), PathBuf::from("/b")]);
            }
            for need in &needs {
                let without: Vec<_> = vars.iter().filter(|(key, _)| key != need).copied().collect();
                let error = read(&without).unwrap_err();
                assert_eq!(error.code, code::INVALID_ENVIRONMENT);
                assert!(error.msg.contains(&format!("[{need}] missing")), "{error}");
            }
        }
        assert!(read(&[]).is_err() && read(&[("CNI_COMMAND", "add")]).is_err());
    }

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for id in ["", ".", "../x", "a/b", "-a", "a:b", "ä", "a b", "a\n"] {
            assert!(Attachment::new(id, "eth0").is_err(), "{id:?}");
        }
        for ifname in ["", ".", "..", "a/b", "a:b", "a b", "a\u{7f}", "0123456789abcdef"] {
            assert!(Attachment::new("c", ifname).is_err(), "{ifname:?}");
        }
        assert!(Attachment::new("0Az_.-", "0123456789abcde").is_ok());
    }
}
