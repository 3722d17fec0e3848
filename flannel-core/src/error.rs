//! Errors as one line of text.

use std::error::Error;

/// The text of `error` and of all its causes, outermost first, separated by `": "`.
///
/// Errors that wrap another one often end with its text. Such a cause is not repeated.
///
/// ```
/// use flannel_core::error::chain;
/// use flannel_core::subnet::SubnetError;
///
/// let source = Box::new(std::io::Error::other("connection refused"));
/// let error = SubnetError::Unavailable { what: "get http://192.0.2.1".into(), source };
/// assert_eq!(chain(&error), "store unavailable: get http://192.0.2.1: connection refused");
/// ```
pub fn chain(error: &dyn Error) -> String {
    with_causes(error.to_string(), error.source())
}

/// `text` followed by `cause` and its causes, as in [`chain`]. It is for errors whose own text says nothing
/// (`"transport error"`) and is replaced.
pub fn with_causes(mut text: String, mut cause: Option<&(dyn Error + 'static)>) -> String {
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

/// A text is not what it should be, in words that continue "it is not", such as `auto or off`. The text itself is not kept,
/// since it may be a secret that somebody put in the wrong place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not {0}")]
pub struct Expected(pub &'static str);

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Wrapped(&'static str, Option<Box<Self>>);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    fn wrapped(texts: &[&'static str]) -> Wrapped {
        let (first, causes) = texts.split_first().unwrap();
        Wrapped(first, (!causes.is_empty()).then(|| Box::new(wrapped(causes))))
    }

    #[test]
    fn names_every_cause_once() {
        for (texts, want) in [
            (&["a"][..], "a"),
            (&["a", "b", "c"], "a: b: c"),
            (&["a: b", "b"], "a: b"),
            (&["a: b: c", "b: c", "c"], "a: b: c"),
            // The same word elsewhere in the text is not the cause's.
            (&["no route: can't read", "no route"], "no route: can't read: no route"),
        ] {
            assert_eq!(chain(&wrapped(texts)), want);
        }
    }

    #[test]
    fn a_text_that_says_nothing_is_replaced_and_its_causes_stay() {
        let error = wrapped(&["transport error", "dial", "refused"]);
        assert_eq!(with_causes("get /v3".to_owned(), error.source()), "get /v3: dial: refused");
    }
}
