//! Files of sections with keys and values, as systemd and `NetworkManager` have them. Pure.

/// A section, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) name: String,
    pub(super) entries: Vec<(String, String)>,
}

/// Reads a file; lines that are neither a section nor an entry are ignored.
pub(super) fn parse(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            sections.push(Section { name: name.to_owned(), entries: Vec::new() });
        } else if let (Some(section), Some((key, value))) = (sections.last_mut(), line.split_once('=')) {
            section.entries.push((key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    sections
}

/// The last value of a key.
pub(super) fn value<'a>(sections: &'a [Section], section: &str, key: &str) -> Option<&'a str> {
    let all = sections.iter().filter(|it| it.name == section).flat_map(|it| it.entries.iter());
    all.rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

/// Whether a pattern with `*` and `?` matches a whole text (fnmatch(3), without brackets).
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    match pattern.chars().next() {
        None => text.is_empty(),
        Some('*') => {
            let rest = &pattern[1..];
            text.char_indices().map(|(at, _)| at).chain([text.len()]).any(|at| glob(rest, &text[at..]))
        }
        Some(first) => {
            let mut letters = text.chars();
            letters.next().is_some_and(|letter| first == '?' || first == letter)
                && glob(&pattern[first.len_utf8()..], letters.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_patterns() {
        let sections = parse("; x\nlost=1\n[Match]\nName = a b\n#[x]\n[Link]\nName=c\nName=d\n");
        assert_eq!(value(&sections, "Match", "Name"), Some("a b"));
        assert_eq!(value(&sections, "Link", "Name"), Some("d"));
        assert_eq!(value(&sections, "Link", "lost"), None);
        for (pattern, matches) in [
            ("*", true),
            ("flannel*", true),
            ("flannel.?", true),
            ("*.1", true),
            ("", false),
            ("flannel", false),
            ("f?", false),
        ] {
            assert_eq!(glob(pattern, "flannel.1"), matches, "{pattern}");
        }
    }
}
