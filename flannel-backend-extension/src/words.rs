//! A command as words: split once, when the config is read, and filled in each time it is run. Pure.
//!
//! A text is split as a POSIX shell splits it (quotes and backslashes; POSIX.1-2017, Shell Command Language, 2.2 and 2.6.5),
//! but there is no shell: nothing is executed to get a word, no file names are matched, and a text that needs more than words
//! is refused. Variables are replaced *after* the text was split, each inside the word where its name stands. So the number
//! of arguments is that of the config, whatever the values are.

use std::fmt;

/// A command: a program and its arguments, with names of variables in them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Template {
    words: Vec<Word>,
}

type Word = Vec<Part>;

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// Text that stays as it is.
    Text(String),
    /// The name of a variable, whose value takes its place.
    Variable(String),
}

/// Why a text is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WordsError {
    /// A quote is not closed.
    #[error("has a quote ({0}) that is not closed")]
    Open(char),
    /// It ends with a backslash.
    #[error("ends with a backslash that quotes nothing")]
    Backslash,
    /// It needs a shell.
    #[error(
        "has {0}, which takes a shell, and commands are run without one: quote it if it is meant as text, or put it into a \
         script or into sh -c '..' (quoted by ', so that the shell takes variables from its environment)"
    )]
    Shell(String),
    /// An argument of a list needs a shell, as the list may name one.
    #[error(
        "has {0}, which takes a shell, and commands are run without one: write ${0} if it is meant as text, or for the shell \
         of a list such as [\"sh\", \"-c\", \"..\"]; in a list, $$ is a dollar sign"
    )]
    ShellInList(String),
    /// A variable is not written as one.
    #[error("has {0}: variables are written $NAME or ${{NAME}}")]
    Variable(String),
    /// Likewise, in a list.
    #[error("has {0}: variables are written $NAME or ${{NAME}}, and in a list $$ is a dollar sign")]
    VariableInList(String),
    /// A program can't get it.
    #[error("has a NUL character, which no argument can have")]
    Nul,
    /// There is no program.
    #[error("names no program")]
    NoProgram,
}

impl WordsError {
    /// The same of an argument of a list, where nothing quotes, but `$$` is a dollar sign.
    fn in_list(self) -> Self {
        match self {
            Self::Shell(what) => Self::ShellInList(what),
            Self::Variable(what) => Self::VariableInList(what),
            other => other,
        }
    }
}

impl fmt::Debug for Template {
    /// Shows the program only: arguments may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Template").field(&self.words.first()).finish_non_exhaustive()
    }
}

impl Template {
    /// Splits a text into words; `None` for a blank one.
    pub(crate) fn split(text: &str) -> Result<Option<Self>, WordsError> {
        if text.contains('\0') {
            return Err(WordsError::Nul);
        }
        let mut splitter = Splitter { rest: text, word: None, words: Vec::new() };
        splitter.run()?;
        Self::of(splitter.words)
    }

    /// Takes words as they are, but for variables, and `$$` for a dollar sign; `None` if there are none.
    pub(crate) fn of_list(list: &[String]) -> Result<Option<Self>, WordsError> {
        let word = |text: &String| {
            if text.contains('\0') {
                return Err(WordsError::Nul);
            }
            let (mut rest, mut word) = (text.as_str(), Word::new());
            while let Some((before, after)) = rest.split_once('$') {
                push_text(&mut word, before);
                rest = match after.strip_prefix('$') {
                    Some(after) => {
                        push_text(&mut word, "$");
                        after
                    }
                    None => variable(after, &mut word).map_err(WordsError::in_list)?,
                };
            }
            push_text(&mut word, rest);
            Ok(word)
        };
        Self::of(list.iter().map(word).collect::<Result<_, _>>()?)
    }

    fn of(words: Vec<Word>) -> Result<Option<Self>, WordsError> {
        match words.first() {
            None => Ok(None),
            Some(program) if program.is_empty() => Err(WordsError::NoProgram),
            Some(_) => Ok(Some(Self { words })),
        }
    }

    /// The words with the values of their variables. A variable without a value is empty, and its word stays.
    pub(crate) fn fill(&self, value: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let fill = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Variable(name) => value(name).unwrap_or_default(),
        };
        self.words.iter().map(|word| word.iter().map(fill).collect()).collect()
    }
}

fn push_text(word: &mut Word, text: &str) {
    match word.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Text(last)) => last.push_str(text),
        _ => word.push(Part::Text(text.to_owned())),
    }
}

/// Reads the name of a variable that begins at `text`, after its dollar sign. Returns what comes after it. A dollar sign
/// before anything that begins no name is text.
fn variable<'a>(text: &'a str, word: &mut Word) -> Result<&'a str, WordsError> {
    if let Some(inside) = text.strip_prefix('{') {
        let (name, after) = inside
            .split_once('}')
            .filter(|(name, _)| name_length(name) == name.len() && !name.is_empty())
            .ok_or_else(|| {
                WordsError::Variable(format!("${{{}", inside.chars().take(20).collect::<String>()))
            })?;
        word.push(Part::Variable(name.to_owned()));
        return Ok(after);
    }
    let (name, after) = text.split_at(name_length(text));
    match text.chars().next() {
        Some('(') => Err(WordsError::Shell("$(".to_owned())),
        Some(special) if special.is_ascii_digit() || "@*#?-!$".contains(special) => {
            Err(WordsError::Variable(format!("${special}")))
        }
        _ if name.is_empty() => {
            push_text(word, "$");
            Ok(after)
        }
        _ => {
            word.push(Part::Variable(name.to_owned()));
            Ok(after)
        }
    }
}

/// The length in bytes of the name at the beginning of a text (POSIX.1-2017, 3.235).
fn name_length(text: &str) -> usize {
    let is_first = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    if !text.as_bytes().first().is_some_and(is_first) {
        return 0;
    }
    text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count()
}

/// A text that is being split.
struct Splitter<'a> {
    rest: &'a str,
    /// The present word; `None` between words.
    word: Option<Word>,
    words: Vec<Word>,
}

impl<'a> Splitter<'a> {
    fn run(&mut self) -> Result<(), WordsError> {
        while let Some((next, rest)) = self.next() {
            self.rest = rest;
            match next {
                ' ' | '\t' | '\n' | '\r' => self.words.extend(self.word.take()),
                '\'' => self.single_quoted()?,
                '"' => self.double_quoted()?,
                '\\' => self.escaped()?,
                '$' => self.rest = variable(rest, self.word.get_or_insert_default())?,
                '|' | '&' | ';' | '<' | '>' | '(' | ')' | '`' => {
                    return Err(WordsError::Shell(next.to_string()));
                }
                other => self.push(other),
            }
        }
        self.words.extend(self.word.take());
        Ok(())
    }

    fn next(&self) -> Option<(char, &'a str)> {
        let mut chars = self.rest.chars();
        chars.next().map(|next| (next, chars.as_str()))
    }

    fn push(&mut self, text: char) {
        push_text(self.word.get_or_insert_default(), text.encode_utf8(&mut [0; 4]));
    }

    fn single_quoted(&mut self) -> Result<(), WordsError> {
        let (inside, after) = self.rest.split_once('\'').ok_or(WordsError::Open('\''))?;
        push_text(self.word.get_or_insert_default(), inside);
        self.rest = after;
        Ok(())
    }

    fn escaped(&mut self) -> Result<(), WordsError> {
        let (next, rest) = self.next().ok_or(WordsError::Backslash)?;
        self.rest = rest;
        // A backslash before the end of a line joins it with the next one.
        if next != '\n' {
            self.push(next);
        }
        Ok(())
    }

    fn double_quoted(&mut self) -> Result<(), WordsError> {
        self.word.get_or_insert_default();
        loop {
            let (next, rest) = self.next().ok_or(WordsError::Open('"'))?;
            self.rest = rest;
            match next {
                '"' => return Ok(()),
                '`' => return Err(WordsError::Shell("`".to_owned())),
                '$' => self.rest = variable(rest, self.word.get_or_insert_default())?,
                '\\' => match self.next() {
                    Some(('$' | '`' | '"' | '\\' | '\n', _)) => self.escaped()?,
                    _ => self.push('\\'),
                },
                other => self.push(other),
            }
        }
    }
}

#[cfg(test)]
mod tests;
