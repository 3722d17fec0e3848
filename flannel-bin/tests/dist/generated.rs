//! What the package has from the table of flags: completions and man pages, as the shells and groff read them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::host::deb;
use crate::{flags, success};

/// Cargo builds the examples with all tests, next to them; before `cargo test --test dist` it takes
/// `cargo build --examples`.
fn generated() -> TempDir {
    let tests = std::env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples/package_files");
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(&example).arg(folder.path()).output();
    success(&output.unwrap_or_else(|error| panic!("{}: {error}", example.display())));
    folder
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn all_that_is_written_is_packed_and_the_other_way_round() {
    let deb = deb();
    let from = deb["assets"].as_array().unwrap().iter().filter_map(|asset| asset[0].as_str());
    let packed: BTreeSet<String> =
        from.filter_map(|from| from.strip_prefix("../target/deb/")).map(str::to_owned).collect();
    let page = |name: &String| name.ends_with(".8");
    let written = names(generated().path());
    let pages: Vec<_> = written.iter().filter(|name| page(name)).collect();
    assert!(pages.len() > 3 && pages.iter().any(|name| *name == "flanneld-cleanup.8"), "{pages:?}");
    let mut want: BTreeSet<String> = written.iter().filter(|name| !page(name)).cloned().collect();
    want.extend(["*.8", "flannel"].map(str::to_owned));
    assert_eq!(packed, want);
}

/// Words as bash splits a line, the last one of which is being typed, and what it is completed to.
#[test]
fn bash_completes_flags_commands_and_values() {
    let folder = generated();
    let complete = |words: &[&str]| -> Vec<String> {
        let script = "source \"$1/flanneld.bash\"; shift
            COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1))
            complete -p flanneld >&2
            _flanneld \"$1\" \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"
            printf '%s\\n' \"${COMPREPLY[@]}\"";
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", script, "bash"]).arg(folder.path()).args(words);
        // `compopt` is only for the shell that completes.
        success(&bash.output().unwrap()).lines().map(str::to_owned).collect()
    };
    for (words, want) in [
        (&["flanneld", "--etcd-pre"][..], &["--etcd-prefix"][..]),
        (&["flanneld", "clean"], &["cleanup"]),
        (&["flanneld", "cleanup", "--dry"], &["--dry-run"]),
        (&["flanneld", "--ip-masq", "--log-f"], &["--log-format"]),
        (&["flanneld", "--log-format", ""], &["text", "json"]),
        (&["flanneld", "--strict-underlay", "o"], &["off", "observe"]),
        (&["flanneld", "log-level", "de"], &["debug"]),
        (&["flanneld", "docker-opts", "--help"], &["--help"]),
    ] {
        assert_eq!(complete(words), want, "{words:?}");
    }
    // The next word is never the value of a boolean.
    assert!(complete(&["flanneld", "--ip-masq", ""]).iter().all(|word| word != "true" && word != "false"));
}

#[test]
fn fish_completes_flags_commands_and_values() {
    let folder = generated();
    let complete = |line: &str| -> Vec<String> {
        let script = "source $argv[1]; and complete --do-complete $argv[2]";
        let mut fish = Command::new("fish");
        fish.args(["--no-config", "-c", script]).arg(folder.path().join("flanneld.fish")).arg(line);
        // Fish keeps its history at home.
        let text = success(&fish.env("HOME", folder.path()).output().unwrap());
        text.lines().filter_map(|line| line.split('\t').next()).map(str::to_owned).collect()
    };
    for (line, want) in [
        ("flanneld status --o", &["--output"][..]),
        ("flanneld clean", &["cleanup"]),
        ("flanneld --log-format ", &["json", "text"]),
        ("flanneld --ip-masq --log-format=t", &["--log-format=text"]),
        ("flanneld status --output ", &["json", "table", "wide"]),
    ] {
        let mut completed = complete(line);
        completed.sort();
        assert_eq!(completed, want, "{line}");
    }
}

/// Zsh completes only what is typed, so it gets a terminal, and Tab is pressed.
#[test]
fn zsh_completes_flags_commands_and_values() {
    let folder = generated();
    for (line, want) in [
        ("flanneld status --o", "flanneld status --output"),
        ("flanneld clean", "flanneld cleanup"),
        ("flanneld --log-format j", "flanneld --log-format json"),
    ] {
        let script = r#"zmodload zsh/zpty
            zpty typed zsh -f -i
            zpty -w typed "PS1=; fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D; print ready-\$_comps[flanneld]"
            zpty -r -m typed seen '*ready-_flanneld*'
            zpty -n -w typed "$2"$'\t'
            zpty -r -m typed seen "*$3*"
            print -r -- "$seen""#;
        // What never comes is waited for, so there is an end.
        let mut zsh = Command::new("timeout");
        zsh.args(["60", "zsh", "-f", "-c", script, "zsh"]).arg(folder.path()).args([line, want]);
        zsh.env("TERM", "xterm").env("HOME", folder.path());
        let seen = success(&zsh.output().unwrap());
        assert!(seen.contains(want), "{line}: {seen}");
    }
}

#[test]
fn man_pages_are_shown_without_a_warning_and_have_every_flag() {
    let folder = generated();
    let shown = |page: &str| {
        // All warnings; a line that no word is too long for.
        let mut groff = Command::new("groff");
        groff.args(["-man", "-ww", "-Tutf8", "-P-cbou", "-rLL=200n"]).arg(folder.path().join(page));
        let output = groff.output().expect("groff is there; .ci/install installs it");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{page}");
        success(&output).replace('\u{2010}', "-")
    };
    let agent = shown("flanneld.8");
    for (flag, variable) in flags().into_iter().filter(|(flag, _)| flag != "version") {
        assert!(agent.contains(&format!("--{flag}")) && agent.contains(&format!("({variable})")), "{flag}");
    }
    for section in
        ["NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "STORE", "FIREWALL", "FILES", "EXIT STATUS"]
    {
        assert!(agent.contains(&format!("\n{section}")), "{section}");
    }
    for page in names(folder.path()).iter().filter(|name| name.ends_with(".8") && *name != "flanneld.8") {
        let command = page.trim_start_matches("flanneld-").trim_end_matches(".8");
        assert!(agent.contains(&format!("flanneld-{command}(8)")), "{command}");
        let shown = shown(page);
        let help = success(&crate::flanneld(&[command, "--help"]));
        for flag in help.lines().filter_map(|line| line.get(6..)?.strip_prefix("--")) {
            let flag = flag.split([' ', '[']).next().unwrap();
            assert!(shown.contains(&format!("--{flag}")), "{page}: {flag}");
        }
        // The doctor's help lists what it checks.
        let checks = help.lines().skip_while(|line| *line != "Checks:").skip(1);
        let checks: Vec<_> = checks.take_while(|line| !line.is_empty()).collect();
        assert!(command != "doctor" || checks.len() > 30, "{help}");
        for check in checks.iter().filter_map(|line| line.split_whitespace().next()) {
            assert!(shown.contains(check), "{page}: {check}");
        }
    }
}
