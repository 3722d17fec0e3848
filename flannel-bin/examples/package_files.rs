//! Writes what a package has besides the program, from the table of flags: completions for bash, zsh and fish, and a
//! man page of each command. `dist/debian/build` runs it; the program itself carries none of it.
//!
//! ```sh
//! cargo run --package flannel-bin --example package_files -- FOLDER
//! ```

// The table is that of the program, which uses more of it.
#![allow(dead_code)]

#[path = "../src/cli/flags.rs"]
mod flags;
#[path = "../src/cli/value.rs"]
mod value;

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use clap::builder::Str;
use clap::{Arg, ArgAction, Command, ValueHint};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

/// The manual's section for programs of an administrator.
const SECTION: &str = "8";
/// What the page of the agent has besides its flags.
const SECTIONS: &str = include_str!("../../dist/debian/flanneld.8.in");
/// No hyphens in words: names of flags and variables are pasted.
const WHOLE_WORDS: &[u8] = b".nh\n.ad l\n";
/// What stands between the flags and the rest.
const REST: &str = ".SH FILES";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: package_files FOLDER")?;
    let folder = Path::new(&folder);
    fs::create_dir_all(folder)?;
    completions(folder)?;
    man_pages(folder)
}

/// `flanneld.bash`, `_flanneld` and `flanneld.fish`.
fn completions(folder: &Path) -> Result<(), Box<dyn Error>> {
    let command = of_all(flags::program().command().clone(), for_shells);
    let words = Arg::new("word").value_parser(["info", "debug", "trace"]);
    let mut command = command.mut_subcommand("log-level", |command| command.arg(words));
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "flanneld", folder)?;
    }
    let fish = folder.join("flanneld.fish");
    let mended =
        values_in_fish(&fs::read_to_string(&fish)?).ok_or("fish's completions have another form now")?;
    Ok(fs::write(fish, mended)?)
}

/// Lets fish complete the value of a flag before any command, too: `argparse` refuses a line whose last flag has no value yet,
/// so without that flag it is asked again. `None` if the completions are not as clap makes them.
fn values_in_fish(text: &str) -> Option<String> {
    const ASKED: &str = "    argparse -s (__fish_flanneld_global_optspecs) -- $cmd 2>/dev/null\n";
    const AGAIN: &str = "    or argparse -s (__fish_flanneld_global_optspecs) -- $cmd[1..-2] 2>/dev/null\n";
    let (before, after) = text.split_once(ASKED)?;
    Some([before, ASKED, AGAIN, after].concat())
}

/// The agent and its commands, with each flag changed.
fn of_all(command: Command, change: impl Fn(Arg) -> Arg) -> Command {
    command.mut_args(&change).mut_subcommands(|command| command.mut_args(&change))
}

/// A flag as shells should complete it.
fn for_shells(flag: Arg) -> Arg {
    if flag.is_require_equals_set() {
        // The next word is never its value.
        return flag.action(ArgAction::SetTrue).num_args(0).require_equals(false).hide_default_value(false);
    }
    let kind = flag.get_value_names().unwrap_or_default().first().map(Str::as_str);
    match kind {
        Some("FILE") => flag.value_hint(ValueHint::FilePath),
        Some("DIR") => flag.value_hint(ValueHint::DirPath),
        _ => flag,
    }
}

/// `flanneld.8`, and a page of each command that it names.
fn man_pages(folder: &Path) -> Result<(), Box<dyn Error>> {
    let program = flags::program();
    let with_variable = |flag: Arg| {
        let variable = flag.get_long().and_then(|name| program.variable_of(name));
        let Some((variable, help)) = variable.zip(flag.get_help().cloned()) else { return flag };
        flag.help(format!("{help} ({variable})"))
    };
    let mut agent = of_all(program.command().clone(), with_variable).subcommand_help_heading("COMMANDS");
    agent = agent.about("agent of the flannel overlay network for containers");
    agent.build();
    for command in agent.get_subcommands() {
        let name = format!("flanneld-{}", command.get_name());
        let man = man(command.clone(), &name);
        let mut page = Vec::new();
        man.render_title(&mut page)?;
        page.extend_from_slice(WHOLE_WORDS);
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        let notes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let mut roff = Roff::new();
        roff.control("SH", ["NOTES"]).control("nf", []);
        notes.lines().for_each(|line| _ = roff.text([roman(line)]));
        roff.control("fi", []).to_writer(&mut page)?;
        writeln!(page, ".SH SEE ALSO\n.BR flanneld ({SECTION})")?;
        fs::write(folder.join(format!("{name}.{SECTION}")), page)?;
    }
    let syntax = agent.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (description, rest) = SECTIONS.split_once(REST).ok_or("the template has no files")?;
    let man = man(agent, "flanneld");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    page.extend_from_slice(WHOLE_WORDS);
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    page.write_all(description.as_bytes())?;
    Roff::new().control("PP", []).text([roman(syntax.replace('\n', " "))]).to_writer(&mut page)?;
    man.render_subcommands_section(&mut page)?;
    man.render_options_section(&mut page)?;
    write!(page, "{REST}{rest}")?;
    fs::write(folder.join(format!("flanneld.{SECTION}")), page)?;
    Ok(())
}

fn man(command: Command, name: &str) -> Man {
    let command = command.display_name(name.to_owned());
    // An empty date would be no argument at all.
    Man::new(command)
        .date(" ")
        .title(name.to_uppercase())
        .section(SECTION)
        .source("flannel")
        .manual("System Administration")
}
