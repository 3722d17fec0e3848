//! Errors as text.

use std::error::Error;

/// An error with all its causes, outermost first.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Wrapping errors often repeat what they wrap.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use flannel_core::subnet::SubnetError;

    use super::*;

    #[test]
    fn names_every_cause_once() {
        let source = Box::new(std::io::Error::other("connection refused"));
        let error = SubnetError::Unavailable { what: "get http://10.0.0.1".into(), source };
        assert_eq!(chain(&error), "store unavailable: get http://10.0.0.1: connection refused");
    }
}
