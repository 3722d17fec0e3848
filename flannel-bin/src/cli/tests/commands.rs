//! The flags of the commands.

use flannel_control::show::Form;

use super::*;

#[test]
fn cleanup_takes_the_flags_of_the_agent_that_it_needs() {
    let cleanup = |args: &[&str], env: &[(&str, &str)]| match run_with(args, env) {
        Ok(Command::Task(Task::Cleanup(options))) => *options,
        other => panic!("{args:?}: {other:?}"),
    };
    let defaults = cleanup(&["cleanup"], &[]);
    assert!(!defaults.dry_run && !defaults.lease);
    assert_eq!(defaults.common, options(&[]).common);
    assert_eq!(Options::from(defaults.common.clone()), options(&[]));
    let given = cleanup(&["cleanup", "-dry-run", "--store=local:/x"], &[("FLANNELD_SUBNET_FILE", "/a/b")]);
    assert!(given.dry_run && !given.lease);
    assert_eq!(given.common.store, Store::Local("/x".into()));
    assert_eq!(given.common.subnet_file.to_str(), Some("/a/b"));
    // What is only the agent's is not read, and what is not the agent's has no variable.
    let env = [("FLANNELD_HEALTHZ_PORT", "x"), ("FLANNELD_IP_MASQ", "true"), ("FLANNELD_LEASE", "true")];
    assert_eq!(cleanup(&["cleanup"], &env), defaults);
}

#[test]
fn log_level_takes_a_word_or_a_number_first() {
    let level = |args: &[&str], env: &[(&str, &str)]| match run_with(&[&["log-level"], args].concat(), env) {
        Ok(Command::Task(Task::LogLevel(options))) => options,
        other => panic!("{args:?}: {other:?}"),
    };
    for (args, want) in [
        (&[][..], None),
        (&["debug"], Some(1)),
        (&["info"], Some(0)),
        (&["trace"], Some(4)),
        (&["7"], Some(7)),
        (&["--level=-1"], Some(-1)),
        (&["2", "--subnet-file=/x"], Some(2)),
    ] {
        assert_eq!((level(args, &[]).level, level(args, &[]).sets_modules), (want, false), "{args:?}");
    }
    let modules = level(&["--modules=netlink=5"], &[]);
    assert_eq!((modules.level, modules.sets_modules, modules.modules.len()), (None, true, 1));
    assert!(level(&["--modules="], &[]).sets_modules, "none is a wish, too");
    let of_agent = [("FLANNELD_SUBNET_FILE", "/a"), ("FLANNELD_V", "9"), ("FLANNELD_VMODULE", "x=9")];
    let asked = level(&[], &of_agent);
    assert_eq!((asked.subnet_file.to_str(), asked.level, asked.sets_modules), (Some("/a"), None, false));
    assert_eq!(
        error(&["log-level", "loud"]),
        "--level: \"loud\" is not info, debug, trace or a whole number"
    );
    assert!(error(&["log-level", "debug", "trace"]).starts_with("unexpected argument \"trace\""));
}

#[test]
fn rotate_key_takes_the_subnet_file_of_its_agent() {
    let file = |args: &[&str], env: &[(&str, &str)]| match run_with(&[&["rotate-key"], args].concat(), env) {
        Ok(Command::Task(Task::RotateKey(options))) => options.subnet_file.display().to_string(),
        other => panic!("{args:?}: {other:?}"),
    };
    assert_eq!(file(&[], &[]), "/run/flannel/subnet.env");
    assert_eq!(file(&["--subnet-file=/x"], &[("FLANNELD_SUBNET_FILE", "/a")]), "/x");
    assert_eq!(file(&[], &[("FLANNELD_SUBNET_FILE", "/a"), ("FLANNELD_WIREGUARD_ROTATE", "x")]), "/a");
    assert!(error(&["rotate-key", "now"]).starts_with("unexpected argument \"now\""));
}

#[test]
fn docker_opts_takes_what_the_script_takes() {
    let docker = |args: &[&str]| match run_with(&[&["docker-opts"], args].concat(), &[]) {
        Ok(Command::Task(Task::DockerOpts(options))) => options,
        other => panic!("{args:?}: {other:?}"),
    };
    let defaults = docker(&[]);
    assert!(!defaults.i && !defaults.c && !defaults.m);
    assert_eq!((defaults.k.as_str(), defaults.d.to_str()), ("DOCKER_OPTS", Some("/run/docker_opts.env")));
    for args in [&["-c", "-m", "-k", "X", "-f", "/a"][..], &["-cmkX", "-f/a"], &["-cm", "-k=X", "--f=/a"]] {
        let options = docker(args);
        assert!(!options.i && options.c && options.m, "{args:?}");
        assert_eq!((options.k.as_str(), options.f.to_str()), ("X", Some("/a")), "{args:?}");
    }
    let both = docker(&["-ic"]);
    assert!(both.i && both.c);
    let last = docker(&["-c", "-c=false", "-f", "-x"]);
    assert_eq!((last.c, last.f.to_str()), (false, Some("-x")));
    for args in [["docker-opts", "-?"], ["docker-opts", "-h"]] {
        assert!(matches!(run_with(&args, &[]), Ok(Command::Help(_))), "{args:?}");
    }
    let error = |args: &[&str]| run_with(args, &[]).unwrap_err();
    assert_eq!(error(&["docker-opts", "-k", "a b"]), "--k: \"a b\" is not the name of a variable");
    assert_eq!(error(&["docker-opts", "-ik"]), "flag --k needs a value");
    assert!(error(&["docker-opts", "-x"]).starts_with("unknown flag --x"));
    assert_eq!(
        error(&["docker-opts", "x"]),
        "unexpected argument \"x\"; flanneld takes flags only, and reads none after it"
    );
}

#[test]
fn install_cni_checks_names() {
    let install = |args: &[&str]| run_with(&[&["install-cni"], args].concat(), &[]);
    let Ok(Command::Task(Task::InstallCni(options))) = install(&["--undo", "--conf-dir=/c"]) else {
        panic!()
    };
    assert!(options.undo && options.plugin.is_none() && options.conf.is_none() && options.only.is_none());
    assert_eq!(options.conf_dir.join(&options.conf_name).to_str(), Some("/c/10-flannel.conflist"));
    assert_eq!(options.plugin_dir.to_str(), Some("/opt/cni/bin"));
    for args in [&["--conf-name=a/b"][..], &["--conf-name="], &["--plugin-dir="], &["--only=both"]] {
        assert!(install(args).is_err(), "{args:?}");
    }
}

#[test]
fn a_status_is_one_question_about_the_agent_of_this_host() {
    let ask = |args: &[&str], env: &[(&str, &str)]| run_with(&[&["status"], args].concat(), env);
    let Ok(Command::Task(Task::Status(options))) =
        ask(&["--watch", "--output=wide"], &[("FLANNELD_SUBNET_FILE", "/x")])
    else {
        panic!()
    };
    assert!(options.watch && !options.diff && options.peer.is_empty());
    assert_eq!((options.output, options.subnet_file.to_str()), (Form::Wide, Some("/x")));
    for (args, why) in [
        (&["--diff", "--watch"][..], "--diff is a question of its own"),
        (&["--diff", "--peer=10.5.1.0/24"], "--diff is a question of its own"),
        (&["--watch", "--peer=10.5.1.0/24"], "--watch shows all peers"),
        (&["--output=yaml"], "--output: \"yaml\" is not table, wide or json"),
        (&["--output"], "flag --output needs a value"),
    ] {
        let error = ask(args, &[]).unwrap_err();
        assert!(error.starts_with(why), "{args:?}: {error}");
    }
    let Ok(Command::Task(Task::Events(options))) = run_with(&["events", "--follow"], &[]) else { panic!() };
    assert_eq!((options.follow, options.output), (true, Form::Wide));
}
