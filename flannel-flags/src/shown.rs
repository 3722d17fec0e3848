//! What of a command line and its values may be shown. A password can stand wherever somebody mistyped a flag.

use flannel_core::secret::{ServerUrl, without_user_info};

use crate::program::Program;
use crate::value::is_content;

/// What stands where something is not shown.
pub(crate) const HIDDEN: &str = "***";

/// A flag's value, never with the user info of a URL in it.
pub(crate) fn value(program: &Program, flag: &str, text: &str) -> String {
    // The content may stand behind a word such as `local:`.
    let behind = text.split_once(':').map_or(text, |(_, behind)| behind);
    if program.passwords.contains(&flag) || is_content(text) || is_content(behind) {
        return HIDDEN.to_owned();
    }
    if program.users.contains(&flag)
        && let Some((name, _)) = text.split_once(':')
    {
        return format!("{name}:{HIDDEN}");
    }
    if !program.is_delicate(flag) {
        return without_user_info(text);
    }
    let urls: Vec<String> = text.split(',').map(|url| ServerUrl::from(url).to_string()).collect();
    // A password can have commas, too.
    let is_clear = !text.contains('@') || urls.len() == 1;
    let is_clear = is_clear && urls.iter().all(|url| !url.contains(HIDDEN));
    if is_clear { urls.join(",") } else { HIDDEN.to_owned() }
}

/// An argument that was not understood: what comes before a value, if there may be one in it.
pub(crate) fn argument(program: &Program, text: &str) -> String {
    let name = text.split_inclusive('=').next().unwrap_or_default();
    let ends = program.delicate().filter_map(|flag| Some(name.find(flag)? + flag.len()));
    let end = ends.min().filter(|end| !matches!(&name[*end..], "" | "="));
    end.map_or_else(|| without_user_info(name), |end| format!("{}{HIDDEN}", without_user_info(&name[..end])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program::new(clap::Command::new("flanneld"))
            .passwords(&["etcd-password"])
            .users(&["etcd-username"])
            .urls(&["etcd-endpoints", "kube-api-url"])
    }

    #[test]
    fn a_value_is_shown_as_far_as_it_holds_no_password() {
        for (name, text, shown) in [
            ("etcd-password", "hush", "***"),
            ("etcd-endpoints", "http://a:1,https://b:2", "http://a:1,https://b:2"),
            ("etcd-endpoints", "http://me:hush@a:1", "http://a:1"),
            ("etcd-endpoints", "http://me:hu,sh@a:1", "***"),
            ("etcd-endpoints", "http://b:1,http://me:hush@a:1", "***"),
            ("kube-api-url", "http://me:hush@a:1", "http://a:1"),
            ("kube-api-url", "http://me:hush", "***"),
            ("iface", "eth0", "eth0"),
            ("store", "http://me:hush@a:1", "http://a:1"),
            ("store", "local:{\"key\"", "***"),
            ("etcd-username", "me", "me"),
            ("etcd-username", "me:hush", "me:***"),
        ] {
            assert_eq!(value(&program(), name, text), shown);
        }
    }

    #[test]
    fn an_argument_is_shown_up_to_what_may_be_a_value() {
        for (text, shown) in [
            ("eth0", "eth0"),
            ("clean-up", "clean-up"),
            ("--ifcae=eth0", "--ifcae="),
            ("---etcd-password=hush", "---etcd-password="),
            ("x-etcd-passwordxhush", "x-etcd-password***"),
            ("--kube-api-urlxhttp://me:hush@a", "--kube-api-url***"),
            ("http://me:hush@a", "http://a"),
        ] {
            assert_eq!(argument(&program(), text), shown);
        }
    }
}
