//! The example of the crate: syntax, variables, errors and secrets. `flannel-bin` has the tables of all of flanneld's flags.

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/greet.rs"]
mod example;

use proptest::prelude::*;

fn answer_with(args: &[&str], env: &[(&str, &str)]) -> Result<String, String> {
    let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let variable = |name: &str| Some(env.iter().find(|(key, _)| *key == name)?.1.to_owned());
    example::answer(&args, variable).map_err(Into::into)
}

fn answer(args: &[&str]) -> String {
    answer_with(args, &[]).unwrap_or_else(|error| panic!("{args:?}: {error}"))
}

fn error(args: &[&str]) -> String {
    answer_with(args, &[]).expect_err(&format!("{args:?}"))
}

#[test]
fn flags_have_the_syntax_of_go() {
    for args in [
        &["-name", "you"][..],
        &["--name", "you"],
        &["-name=you"],
        &["--name=me", "--name=you"],
        &["--name=you", "--"],
    ] {
        assert_eq!(answer(args).lines().next(), Some("hello you"), "{args:?}");
    }
    assert_eq!(
        answer(&["--name", "--loud"]),
        "hello --loud\n(--name=--loud)",
        "whatever the next argument is"
    );
    assert_eq!(answer(&["-loud=T", "-times", "0x2"]), "HELLO WORLDHELLO WORLD\n(--loud=T --times=0x2)");
    assert_eq!(answer(&["-loud=f"]), "hello world\n(--loud=f)");
    assert_eq!(answer(&["--version", "--loud"]), "hello 1.0");
    assert!(answer(&["-h"]).contains("--times <TIMES>"), "{}", answer(&["-h"]));
}

#[test]
fn a_word_can_be_a_flag_of_a_command() {
    assert_eq!(answer(&["say", "hi"]).lines().next(), Some("hi"));
    assert_eq!(answer(&["say", "-text", "hi"]).lines().next(), Some("hi"));
    assert!(error(&["say", "hi", "there"]).starts_with("unexpected argument \"there\""));
}

#[test]
fn variables_fill_in_what_was_not_given() {
    let env = [("HELLO_NAME", "env"), ("HELLO_TIMES", ""), ("HELLO_VERSION", "true")];
    assert_eq!(answer_with(&[], &env).unwrap(), "hello env\n(--name=env)", "empty is unset");
    assert_eq!(answer_with(&["-name=arg"], &env).unwrap().lines().next(), Some("hello arg"));
    let wrong = answer_with(&[], &[("HELLO_TIMES", "x")]).unwrap_err();
    assert_eq!(wrong, "HELLO_TIMES: \"x\" is not a whole number");
}

#[test]
fn errors_name_flag_value_and_what_was_meant() {
    for (args, want) in [
        (&["--nmae=x"][..], "unknown flag --nmae; did you mean --name?"),
        (&["--name"], "flag --name needs a value"),
        (&["--times=x"], "--times: \"x\" is not a whole number"),
        (&["--times=0"], "--times: \"0\" is not at least 1"),
        (&["---times=1"], "bad flag syntax: ---times="),
        (&["--loud", "false"], "unexpected argument \"false\"; did you mean --loud=false?"),
        (&["-loud", "say"], "the command say goes before all flags"),
        (&["sayy"], "unknown command \"sayy\"; did you mean say?"),
    ] {
        assert_eq!(error(args), want, "{args:?}");
    }
    assert_eq!(example::program().hint(&["say".to_owned()]), "hello say --help lists its flags.");
    assert_eq!(example::program().hint(&["x".to_owned()]), "hello --help lists all flags and commands.");
}

#[test]
fn secrets_are_never_shown() {
    assert_eq!(answer(&["--password=hush"]), "hello world\n(--password=***)");
    for args in [
        &["--password=hu", "hush"][..],
        &["--password", "=", "hush"],
        &["---password=hush"],
        &["--passwordhush"],
        &["--password=hu", "-hush"],
        &["--", "hush"],
    ] {
        assert!(!error(args).contains("hush"), "{}", error(args));
    }
}

proptest! {
    #[test]
    fn never_panics(args in prop::collection::vec("say|-{0,3}(name|loud|times|password|h)(=.{0,5})?|.{0,9}", 0..5), value in ".{0,9}") {
        let _ = example::answer(&args, |_| None);
        let _ = example::answer(&args, |_| Some(value.clone()));
    }
}
