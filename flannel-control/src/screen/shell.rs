//! Text in shell scripts.

/// A text as a comment: a line break in it must not begin a command.
pub(super) fn comment(text: &str) -> String {
    format!("# {}\n", text.replace(char::is_control, " "))
}
