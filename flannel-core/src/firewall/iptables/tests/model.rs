//! Random damage against a model of iptables-restore: what is planned leads to what is wanted, in one go.

use proptest::prelude::*;

use super::super::rule_text::Home;
use super::super::save::Dump;
use super::super::script;
use super::*;
use crate::addr::Family;
use crate::firewall::rules::{Chain, Ours, Rule};

/// One table: chains in the order of their making, with the texts of their rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model(Vec<(String, Vec<String>)>);

impl Model {
    fn chain(&mut self, name: &str) -> &mut Vec<String> {
        let found = self.0.iter_mut().find(|(chain, _)| chain == name);
        &mut found.unwrap_or_else(|| panic!("there is no chain {name}")).1
    }

    fn dump(&self, table: &str) -> String {
        let chains = self.0.iter().map(|(chain, _)| format!(":{chain} - [0:0]\n"));
        let rules = self
            .0
            .iter()
            .flat_map(|(chain, rules)| rules.iter().map(move |rule| format!("-A {chain} {rule}\n")));
        format!("*{table}\n{}COMMIT\n", chains.chain(rules).collect::<String>())
    }

    /// Does what a line of a script says. What the real one refuses is a panic.
    fn apply(&mut self, line: &str) {
        let (verb, rest) = line.split_once(' ').unwrap();
        let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
        match verb {
            "-N" => {
                assert!(self.0.iter().all(|(known, _)| known != chain), "{chain} is there already");
                self.0.push((chain.to_owned(), Vec::new()));
            }
            "-X" => {
                assert_eq!(self.chain(chain), &[""; 0], "{chain} is not empty");
                let way = format!("-j {chain}");
                assert!(self.0.iter().flat_map(|(_, rules)| rules).all(|rule| !rule.ends_with(&way)));
                self.0.retain(|(known, _)| known != chain);
            }
            "-A" => self.chain(chain).push(rule.to_owned()),
            "-I" => {
                let (number, rule) = rule.split_once(' ').unwrap();
                self.chain(chain).insert(number.parse::<usize>().unwrap() - 1, rule.to_owned());
            }
            "-D" => {
                let at = self.chain(chain).iter().position(|known| known == rule);
                let at = at.unwrap_or_else(|| panic!("no such rule: {line}"));
                self.chain(chain).remove(at);
            }
            _ => panic!("{line}"),
        }
    }

    /// All that is not ours.
    fn others(&self) -> Vec<String> {
        let rules =
            self.0.iter().flat_map(|(chain, rules)| rules.iter().map(move |rule| format!("{chain} {rule}")));
        rules.filter(|rule| !rule.contains("flanneld")).collect()
    }
}

/// A rule of the kernel's chain, or of ours, by number: first those of ours, then those of others.
fn text(home: Home, own: &[Rule], number: usize) -> String {
    match own.get(number) {
        Some(rule) => home.render(rule),
        None => format!("-p tcp -m tcp --dport {number} -j ACCEPT"),
    }
}

proptest! {
    #[test]
    fn one_script_repairs_any_damage(
        masquerade in any::<bool>(),
        wants in any::<bool>(),
        from in proptest::collection::vec(0..3_usize, 0..5),
        chain in proptest::option::of(proptest::collection::vec(0..9_usize, 0..10)),
        is_led_to in any::<bool>(),
    ) {
        let (kind, family) = (if masquerade { Chain::Masquerade } else { Chain::Forward }, Family::V4);
        let home = Home::of(kind);
        let own = all_of(golden_ranges()).rules(family, kind, true).unwrap();
        // No chain, no way to it.
        let jump = |number: &usize| chain.is_some() && *number == 0;
        let from = from.iter().map(|number| if jump(number) { home.jump() } else { text(home, &[], *number) });
        let mut model = Model(vec![(home.from.to_owned(), from.collect()), ("OTHER".to_owned(), Vec::new())]);
        if let Some(chain) = &chain {
            model.0.push((home.chain.to_owned(), chain.iter().map(|number| text(home, &own, *number)).collect()));
            if is_led_to {
                model.chain("OTHER").push(format!("-j {}", home.chain));
            }
        }
        let wanted = if wants { all_of(golden_ranges()) } else { Wanted::default() };
        let want = Chain::ALL.map(|chain| (chain, wanted.rules(family, chain, true).filter(|_| chain == kind)));
        let plan = |model: &Model| {
            let text = model.dump(home.table);
            let ours = Ours::Of(vec![golden_ranges()]);
            script::plan(&Dump::parse(&text).unwrap(), &want, |chain, rule| ours.owns(family, chain, rule))
        };
        let others = model.others();
        let input = plan(&model).input();
        for line in input.lines().filter(|line| line.starts_with('-')) {
            model.apply(line);
        }
        prop_assert!(plan(&model).is_empty(), "{model:?}");
        prop_assert_eq!(model.others(), others);
        let keeps_chain = wants || chain.iter().flatten().any(|number| *number >= own.len());
        let jumps = model.chain(home.from).iter().filter(|rule| **rule == home.jump()).count();
        let is_right = if wants { jumps == 1 } else { keeps_chain || jumps == 0 };
        prop_assert!(is_right, "{model:?}");
        let ours: Vec<_> = model.0.iter().filter(|(name, _)| name == home.chain).flat_map(|(_, rules)| rules).collect();
        let ours: Vec<_> = ours.into_iter().filter(|rule| rule.contains("flanneld")).cloned().collect();
        let wanted = if wants { own.iter().map(|rule| home.render(rule)).collect() } else { Vec::new() };
        prop_assert_eq!(ours, wanted);
        let is_there = model.0.iter().any(|(name, _)| name == home.chain);
        prop_assert_eq!(is_there, keeps_chain || is_led_to && chain.is_some());
    }
}
