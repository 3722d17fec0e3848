//! Differences as a shell script, which can be pasted as it is.

use super::Look;
use super::paint::Style;
use super::shell::comment;
use crate::wire::{Difference, Differences};

/// The script. What the agent must not delete now is in it as a comment.
pub fn diff(differences: &Differences, look: Look) -> String {
    let paint = |style: Style, text: &str| {
        text.lines().map(|line| style.paint(line, look.colour) + "\n").collect::<String>()
    };
    let mut text = String::new();
    for problem in &differences.problems {
        text.push_str(&paint(Style::Bad, &comment(problem)));
    }
    for note in &differences.notes {
        text.push_str(&paint(Style::Fair, &comment(note)));
    }
    if differences.is_none() {
        text.push_str(&paint(Style::Good, &comment("the kernel is as it should be")));
    } else if differences.differences.is_empty() {
        text.push_str(&paint(Style::Fair, &comment("no other difference was found")));
    }
    let mut last = None;
    for difference in &differences.differences {
        let Difference { kind, commands, held } = difference;
        let heading = (kind, held);
        if last != Some(heading) {
            let why = held.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            text.push_str(&paint(Style::Dim, &comment(&format!("{kind}{why}"))));
            last = Some(heading);
        }
        let stays = kind == "surplus" && held.is_some();
        for command in commands {
            text.extend([if stays { comment(command) } else { format!("{command}\n") }]);
        }
    }
    text
}
