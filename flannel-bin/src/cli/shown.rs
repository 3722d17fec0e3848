//! What of a command line and its values may be shown. A password can stand wherever somebody mistyped a flag.

use flannel_core::secret::{ServerUrl, without_user_info};

use super::flags::{FLAGS, Flag, Shown};

/// What stands where something is not shown.
pub(super) const HIDDEN: &str = "***";

/// A flag's value.
pub(super) fn value(flag: &Flag, text: &str) -> String {
    match flag.shown {
        Shown::Value => without_user_info(text),
        Shown::Nothing => HIDDEN.to_owned(),
        Shown::Urls => {
            let urls: Vec<String> = text.split(',').map(|url| ServerUrl::from(url).to_string()).collect();
            // A password can have commas, too.
            let is_clear = !text.contains('@') || urls.len() == 1;
            let is_clear = is_clear && urls.iter().all(|url| !url.contains(HIDDEN));
            if is_clear { urls.join(",") } else { HIDDEN.to_owned() }
        }
    }
}

/// An argument that was not understood: what comes before a value, if there may be one in it.
pub(super) fn argument(text: &str) -> String {
    let name = text.split_inclusive('=').next().unwrap_or_default();
    let delicate = FLAGS.iter().filter(|flag| flag.is_delicate());
    let ends = delicate.filter_map(|flag| Some(name.find(flag.name)? + flag.name.len()));
    let end = ends.min().filter(|end| !matches!(&name[*end..], "" | "="));
    without_user_info(end.map_or(name, |end| &name[..end]))
}

#[cfg(test)]
mod tests {
    use super::super::flags::find;
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
            assert_eq!(value(find(name).unwrap(), text), shown);
        }
    }

    #[test]
    fn an_argument_is_shown_up_to_what_may_be_a_value() {
        for (text, shown) in [
            ("eth0", "eth0"),
            ("clean-up", "clean-up"),
            ("--ifcae=eth0", "--ifcae="),
            ("---etcd-password=hush", "---etcd-password="),
            ("x-etcd-passwordxhush", "x-etcd-password"),
            ("--kube-api-urlxhttp://me:hush@a", "--kube-api-url"),
            ("http://me:hush@a", "http://a"),
        ] {
            assert_eq!(argument(text), shown);
        }
    }
}
