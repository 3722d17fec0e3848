//! What of a command line and its values may be shown. A password can stand wherever somebody mistyped a flag.

use super::value::is_content;
use flannel_core::secret::{ServerUrl, without_user_info};

/// What stands where something is not shown.
pub(super) const HIDDEN: &str = "***";

/// The flags whose values may hold a password.
pub(super) const DELICATE: [&str; 3] = ["etcd-password", "etcd-endpoints", "kube-api-url"];

/// A flag's value, never with the user info of a URL in it.
pub(super) fn value(flag: &str, text: &str) -> String {
    if flag == "etcd-password" || is_content(text.trim_start_matches("local:")) {
        return HIDDEN.to_owned();
    }
    if flag == "etcd-username"
        && let Some((name, _)) = text.split_once(':')
    {
        return format!("{name}:{HIDDEN}");
    }
    if !DELICATE.contains(&flag) {
        return without_user_info(text);
    }
    let urls: Vec<String> = text.split(',').map(|url| ServerUrl::from(url).to_string()).collect();
    // A password can have commas, too.
    let is_clear = !text.contains('@') || urls.len() == 1;
    let is_clear = is_clear && urls.iter().all(|url| !url.contains(HIDDEN));
    if is_clear { urls.join(",") } else { HIDDEN.to_owned() }
}

/// An argument that was not understood: what comes before a value, if there may be one in it.
pub(super) fn argument(text: &str) -> String {
    let name = text.split_inclusive('=').next().unwrap_or_default();
    let ends = DELICATE.iter().filter_map(|flag| Some(name.find(flag)? + flag.len()));
    let end = ends.min().filter(|end| !matches!(&name[*end..], "" | "="));
    end.map_or_else(|| without_user_info(name), |end| format!("{}{HIDDEN}", without_user_info(&name[..end])))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            assert_eq!(value(name, text), shown);
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
            assert_eq!(argument(text), shown);
        }
    }

    #[test]
    fn delicate_flags_exist() {
        let command = super::super::flags::command();
        let names: Vec<_> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        assert!(DELICATE.iter().all(|flag| names.contains(flag)), "{names:?}");
    }
}
