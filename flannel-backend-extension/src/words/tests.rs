use proptest::prelude::*;

use super::*;

fn value(name: &str) -> Option<String> {
    match name {
        "SUBNET" => Some("10.5.1.0/24".to_owned()),
        "EVIL" => Some("a b'\"; $(reboot) `x` $SUBNET *".to_owned()),
        _ => None,
    }
}

fn words(text: &str) -> Vec<String> {
    Template::split(text).unwrap().map(|template| template.fill(value)).unwrap_or_default()
}

#[test]
fn a_text_is_split_as_a_shell_does() {
    for (text, want) in [
        ("", &[][..]),
        (" \t\n ", &[]),
        ("ip  route\tadd\nx", &["ip", "route", "add", "x"]),
        ("a 'b c' \"d e\" f\\ g", &["a", "b c", "d e", "f g"]),
        ("a ''", &["a", ""]),
        ("a \"\" b", &["a", "", "b"]),
        ("a b'c'\"d\"e", &["a", "bcde"]),
        (r#"a "b\"c\\d\$e\f""#, &["a", r#"b"c\d$e\f"#]),
        (r"a 'b\c'", &["a", r"b\c"]),
        ("a b\\\nc", &["a", "bc"]),
        ("a \\$SUBNET '$SUBNET' \\'", &["a", "$SUBNET", "$SUBNET", "'"]),
        ("a ';' '|' \"&\" \\>", &["a", ";", "|", "&", ">"]),
        ("a *.txt ~ [x]? {a,b} #b", &["a", "*.txt", "~", "[x]?", "{a,b}", "#b"]),
        ("a $ $= \"$\"", &["a", "$", "$=", "$"]),
        ("ä ö", &["ä", "ö"]),
    ] {
        assert_eq!(words(text), want, "{text}");
    }
}

#[test]
fn variables_are_replaced_inside_their_word() {
    for (text, want) in [
        ("a $SUBNET", &["a", "10.5.1.0/24"][..]),
        ("a x${SUBNET}y", &["a", "x10.5.1.0/24y"]),
        ("a \"x $SUBNET\"", &["a", "x 10.5.1.0/24"]),
        ("a $UNSET b", &["a", "", "b"]),
        ("a $SUBNETS", &["a", ""]),
        ("a $EVIL b", &["a", "a b'\"; $(reboot) `x` $SUBNET *", "b"]),
    ] {
        assert_eq!(words(text), want, "{text}");
    }
}

#[test]
fn what_takes_a_shell_is_refused_with_a_word() {
    for (text, word) in [
        ("export A=1; b", "has ;"),
        ("a | b", "has |"),
        ("a && b", "has &"),
        ("a > b", "has >"),
        ("a $(b)", "has $("),
        ("a \"$(b)\"", "has $("),
        ("a `b`", "has `"),
        ("a \"`b`\"", "has `"),
        ("(a)", "has ("),
        ("a ${SUBNET:-x}", "has ${SUBNET:-x}"),
        ("a ${}", "has ${}"),
        ("a ${SUBNET", "has ${SUBNET"),
        ("a $1", "has $1"),
        ("a \"$@\"", "has $@"),
        ("a 'b", "quote (')"),
        ("a \"b", "quote (\")"),
        ("a \\", "backslash"),
        ("a\0", "NUL"),
        ("'' a", "no program"),
    ] {
        let error = Template::split(text).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn a_list_is_taken_as_it_is_but_for_variables() {
    let list = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Template::of_list(&words).map(|template| template.map(|it| it.fill(value)).unwrap_or_default())
    };
    let given = ["sh", "-c", "ip route add \"$$SUBNET\" | cat", "$SUBNET x", "'${SUBNET}'", "", "$"];
    let want = ["sh", "-c", "ip route add \"$SUBNET\" | cat", "10.5.1.0/24 x", "'10.5.1.0/24'", "", "$"];
    assert_eq!(list(&given).unwrap(), want);
    assert_eq!(list(&[]).unwrap(), [""; 0]);
    assert_eq!(list(&["", "a"]), Err(WordsError::NoProgram));
    assert_eq!(list(&["a\0"]), Err(WordsError::Nul));
    let error = list(&["sh", "-c", "echo $(id)"]).unwrap_err().to_string();
    assert!(error.contains("write $$( ") && !error.contains("into sh -c"), "{error}");
    assert_eq!(list(&["sh", "-c", "echo $$(id)"]).unwrap()[2], "echo $(id)");
    assert!(list(&["a", "$1"]).unwrap_err().to_string().ends_with("in a list $$ is a dollar sign"));
}

#[test]
fn its_arguments_are_not_shown() {
    let template = Template::split("curl -H 'secret'").unwrap().unwrap();
    assert_eq!(format!("{template:?}"), r#"Template(Some([Text("curl")]), ..)"#);
}

/// Texts in which quotes, variables and spaces come often.
fn text() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a", " ", "'", "\"", "\\", "$A", "${A}", "$B", "$", "{", "}", "\n", "é", ";", "`", "$(", "#", "*",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = Template::split(&text);
        let _ = Template::of_list(&[text.clone(), text]);
    }

    #[test]
    fn the_number_of_arguments_does_not_depend_on_a_value(text in text(), a in any::<String>(), b in any::<String>()) {
        if let Ok(Some(template)) = Template::split(&text) {
            let filled = template.fill(|name| Some(if name == "A" { a.clone() } else { b.clone() }));
            let empty = template.fill(|_| None);
            prop_assert_eq!(filled.len(), empty.len());
            // Each value is there whole, in a word of its own or between texts.
            for (filled, word) in filled.iter().zip(&template.words) {
                for part in word {
                    let Part::Variable(name) = part else { continue };
                    let value = if name == "A" { &a } else { &b };
                    prop_assert!(filled.contains(value));
                }
            }
        }
    }

    #[test]
    fn quoted_text_is_one_argument_as_it_is(text in "[^'\0]*") {
        prop_assert_eq!(words(&format!("a '{text}'")), ["a".to_owned(), text]);
    }
}
