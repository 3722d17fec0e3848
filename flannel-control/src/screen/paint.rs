//! Colours.

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Style {
    /// Text like any other.
    Plain,
    /// A heading.
    Strong,
    /// Beside the point.
    Dim,
    /// As it should be.
    Good,
    /// On its way, or limited.
    Fair,
    /// Not as it should be.
    Bad,
}

impl Style {
    /// The text in the colour of its meaning, as ECMA-48 (SGR) has it.
    pub fn paint(self, text: &str, colour: bool) -> String {
        let code = match self {
            Self::Plain => "",
            Self::Strong => "1",
            Self::Dim => "2",
            Self::Good => "32",
            Self::Fair => "33",
            Self::Bad => "1;31",
        };
        if !colour || code.is_empty() || text.is_empty() {
            return text.to_owned();
        }
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}
