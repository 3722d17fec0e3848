//! Nothing that may be a secret is shown.

use super::*;

/// Whoever writes `--etcd-keyfile="$(cat key)"` learns it, and the log does not have the key.
#[test]
fn the_content_of_a_file_is_refused_where_its_path_belongs_and_not_repeated() {
    let key = "-----BEGIN PRIVATE KEY-----\nTWFya2Vy\n-----END PRIVATE KEY-----\n";
    let long = "x/".repeat(2048);
    let contents = [
        key,
        "apiVersion: v1\nusers: [TWFya2Vy]",
        "apiVersion: v1, users: [TWFya2Vy]",
        r#"{"Network": "TWFya2Vy"}"#,
        "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCTWFya2Vy",
        "/run\tx",
        long.as_str(),
    ];
    let program = flags::program();
    let all = program.command();
    let is_path = |flag: &&clap::Arg| {
        let kind = flag.get_value_names().unwrap_or_default().first().map(AsRef::<str>::as_ref);
        matches!(kind, Some("FILE" | "DIR"))
    };
    let commands = all.get_subcommands().chain([all]);
    let paths: Vec<(&clap::Command, &str)> = commands
        .flat_map(|command| {
            let flags = command.get_arguments().filter(is_path);
            flags.map(move |flag| (command, flag.get_long().unwrap()))
        })
        .collect();
    assert!(paths.len() > 12, "{paths:?}");
    for (command, name) in paths {
        for content in contents {
            let flag = format!("--{name}={content}");
            let word = Some(command.get_name()).filter(|name| *name != "flanneld");
            let args: Vec<&str> = word.into_iter().chain([&*flag]).collect();
            let why = "is not a path, but seems to be the content of a file; save that to a file, and give the path of this";
            assert_eq!(error(&args), format!("--{name}: \"***\" {why}"));
        }
    }
    let stored = error(&[&format!("--store=local:{}", contents[3])]);
    assert!(stored.starts_with("--store: \"***\" is not a path"), "{stored}");
    // Where it is no path, it is not shown either.
    let options = options(&[&format!("--etcd-username={key}"), "--etcd-password=x"]);
    assert!(
        options.shown.contains("--etcd-username=***") && !options.shown.contains("BEGIN"),
        "{}",
        options.shown
    );
    for path in ["/run/flannel/", "/", "..", "/run/."] {
        let want = format!("--subnet-file: {path:?} is not the path of a file, but that of a folder");
        assert_eq!(error(&[&format!("--subnet-file={path}")]), want);
    }
}

#[test]
fn secrets_are_never_shown() {
    let options = options(&[
        "--etcd-username=root",
        "--etcd-password=hunter2",
        "--etcd-endpoints=http://me:hunter2,/@10.0.0.1:2379",
        "--etcd-prefix=/coreos.com/network",
        "--iface=eth0",
        // With it nobody uses the endpoints, which are none.
        "--kube-subnet-mgr",
    ]);
    let want =
        "--etcd-username=root --etcd-password=*** --etcd-endpoints=*** --iface=eth0 --kube-subnet-mgr=true";
    assert_eq!(options.shown, want, "only what differs from the defaults");
    assert!(!format!("{options:?}").contains("hunter2"), "{options:?}");
    let both = self::options(&["--etcd-username=root:hunter2"]);
    assert_eq!(both.shown, "--etcd-username=root:***", "as etcdctl takes them");
}

/// Flags that can hold a password, and the same as variables: cut anywhere, and with any byte replaced.
#[test]
fn no_mistyped_flag_or_variable_shows_a_password() {
    const PASSWORD: &str = "Marker-Of-Secret";
    let told = |text: &str| (0..=PASSWORD.len() - 8).any(|at| text.contains(&PASSWORD[at..at + 8]));
    let check = |args: &[&str], env: &[(&str, &str)]| {
        let shown = match run_with(args, env) {
            Ok(Command::Run(options)) => {
                let opened = crate::store::open(&options).map(|store| store.place());
                let opened =
                    opened.map_err(|error| format!("{error:?} {}", flannel_core::error::chain(&*error)));
                format!("{options:?} {opened:?}")
            }
            other => {
                format!("{other:?} {}", other.as_ref().map_or_else(ToString::to_string, |_| String::new()))
            }
        };
        assert!(!told(&shown), "{args:?} {env:?} shows {shown}");
    };
    let url = format!("https://me:{PASSWORD}@10.0.0.1:2379");
    for (name, value) in
        [("etcd-password", PASSWORD), ("etcd-endpoints", &url), ("kube-api-url", &format!("{url}/base"))]
    {
        let login: &[&str] = if name == "etcd-password" { &["--etcd-username=me"] } else { &[] };
        let login = if name == "kube-api-url" { &["--kube-subnet-mgr"] } else { login };
        let variable = format!("FLANNELD_{}", name.to_uppercase().replace('-', "_"));
        let of = |flag: &str, value: &str| {
            let joined = format!("{flag}={value}");
            check(&[login, &[&joined]].concat(), &[]);
            check(&[login, &[flag, value]].concat(), &[]);
            check(&[&[&*joined], login].concat(), &[]);
            check(&[&[flag, value], login].concat(), &[]);
            check(login, &[(&variable, value)]);
        };
        let flag = format!("--{name}");
        of(&flag, value);
        (0..flag.len()).for_each(|cut| of(&flag[..cut], value));
        (0..value.len()).for_each(|cut| of(&flag, &value[..cut]));
        for byte in ["=", "-", "/", ":", "@", ",", "?", "#", " ", "x", "0", "\n", "é", "["] {
            let replaced = |text: &str, at: usize| format!("{}{byte}{}", &text[..at], &text[at + 1..]);
            (0..flag.len()).for_each(|at| of(&replaced(&flag, at), value));
            (0..value.len()).for_each(|at| of(&flag, &replaced(value, at)));
            check(&[login, &[&format!("{flag}{byte}{value}")]].concat(), &[]);
        }
    }
}
