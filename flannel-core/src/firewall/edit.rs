//! The changes that lead from a chain's present rules to its desired ones, and leave rules of others where they are.
//! Pure.

use super::rules::Rule;

/// One change of a chain. Positions are given by the number of a present rule, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edit {
    /// Removes a rule.
    Delete(usize),
    /// Inserts a rule right before one that stays.
    InsertBefore(usize, Rule),
    /// Appends a rule at the end.
    Append(Rule),
}

/// The fewest changes. `ours` has `None` for rules that are not ours; they stay, also between ours.
pub(super) fn edit(want: &[Rule], ours: &[Option<Rule>]) -> Vec<Edit> {
    let kept = longest_common(want, ours);
    let stays = |number: usize| kept.iter().any(|(_, seen)| *seen == number);
    let extra = ours.iter().enumerate().filter(|(number, rule)| rule.is_some() && !stays(*number));
    let mut edits: Vec<_> = extra.map(|(number, _)| Edit::Delete(number)).collect();
    let mut kept = kept.iter().peekable();
    for (number, rule) in want.iter().enumerate() {
        match kept.peek() {
            Some((wanted, _)) if *wanted == number => _ = kept.next(),
            Some((_, seen)) => edits.push(Edit::InsertBefore(*seen, *rule)),
            None => edits.push(Edit::Append(*rule)),
        }
    }
    edits
}

/// The longest list of pairs (number in `want`, number in `ours`) of equal rules, ascending in both.
fn longest_common(want: &[Rule], ours: &[Option<Rule>]) -> Vec<(usize, usize)> {
    // length[i][j] is the length of the longest common list of want[i..] and ours[j..].
    let mut length = vec![vec![0_usize; ours.len() + 1]; want.len() + 1];
    for i in (0..want.len()).rev() {
        for j in (0..ours.len()).rev() {
            length[i][j] = if ours[j] == Some(want[i]) {
                length[i + 1][j + 1] + 1
            } else {
                length[i + 1][j].max(length[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < want.len() && j < ours.len() {
        if ours[j] == Some(want[i]) {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if length[i + 1][j] >= length[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::firewall::rules::{Side, Verdict};

    fn rule(number: u8) -> Rule {
        let subnet = format!("10.{number}.0.0/16").parse().unwrap();
        Rule { mark: None, src: Some(Side { subnet, outside: false }), dst: None, verdict: Verdict::Accept }
    }

    /// The chain after the edits; foreign rules are `None`.
    fn apply(have: &[Option<Rule>], edits: &[Edit]) -> Vec<Option<Rule>> {
        let mut chain: Vec<(Option<usize>, Option<Rule>)> =
            have.iter().enumerate().map(|(number, rule)| (Some(number), *rule)).collect();
        for edit in edits {
            match *edit {
                Edit::Delete(number) => chain.retain(|(seen, _)| *seen != Some(number)),
                Edit::InsertBefore(number, rule) => {
                    let at = chain.iter().position(|(seen, _)| *seen == Some(number)).expect("it stays");
                    chain.insert(at, (None, Some(rule)));
                }
                Edit::Append(rule) => chain.push((None, Some(rule))),
            }
        }
        chain.into_iter().map(|(_, rule)| rule).collect()
    }

    #[test]
    fn nothing_to_do_is_nothing_done() {
        let want = [rule(1), rule(2)];
        assert_eq!(edit(&want, &[None, Some(rule(1)), None, Some(rule(2)), None]), []);
        assert_eq!(edit(&[], &[None, None]), []);
    }

    #[test]
    fn one_lost_rule_is_one_change() {
        let want = [rule(1), rule(2), rule(3)];
        assert_eq!(edit(&want, &[Some(rule(1)), Some(rule(3))]), [Edit::InsertBefore(1, rule(2))]);
        assert_eq!(edit(&want, &[Some(rule(1)), Some(rule(2))]), [Edit::Append(rule(3))]);
    }

    proptest! {
        #[test]
        fn ends_as_wanted_with_the_others_in_their_order(
            want in proptest::collection::vec(0..4_u8, 0..6),
            have in proptest::collection::vec(proptest::option::of(0..5_u8), 0..8),
        ) {
            let want: Vec<_> = want.into_iter().map(rule).collect();
            let have: Vec<_> = have.into_iter().map(|number| number.map(rule)).collect();
            let after = apply(&have, &edit(&want, &have));
            prop_assert_eq!(after.iter().copied().flatten().collect::<Vec<_>>(), want.clone());
            prop_assert_eq!(after.iter().filter(|rule| rule.is_none()).count(), have.iter().filter(|rule| rule.is_none()).count());
            prop_assert_eq!(edit(&want, &after), []);
        }
    }
}
