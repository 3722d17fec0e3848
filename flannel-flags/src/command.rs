//! Flags as clap reads them, with the meaning that Go's `flag` package gives them.

use clap::{Arg, ArgAction, Command};

use crate::value;

/// The command and its subcommands with flags as Go has them: a boolean may have a value, the last one of several counts,
/// a value may begin with a dash, and a flag that is not given has its default, else an empty value.
pub fn as_in_go(command: Command) -> Command {
    command.mut_args(flag).mut_subcommands(|command| command.mut_args(flag))
}

fn flag(arg: Arg) -> Arg {
    let has_default = !arg.get_default_values().is_empty();
    match arg.get_action() {
        ArgAction::SetTrue => {
            let arg = arg.action(ArgAction::Set).value_parser(value::boolean).value_name("true|false");
            let arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
            if has_default { arg } else { arg.default_value("false").hide_default_value(true) }
        }
        // Nothing given and an empty text are the same.
        ArgAction::Set if !has_default => {
            valued(arg).required(false).default_value("").hide_default_value(true)
        }
        _ => valued(arg),
    }
}

/// A flag with a value, whose name has the possible ones.
fn valued(arg: Arg) -> Arg {
    arg.allow_hyphen_values(true).hide_possible_values(true)
}
