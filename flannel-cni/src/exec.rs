//! Runs another plugin.

use std::fs::File;
use std::io::{self, ErrorKind, Seek as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::args::{Attachment, Verb};
use crate::error::{CniError, code};
use crate::netconf::{Object, check_plugin};

/// How often, and after what pause, a program is tried again that somebody writes just now (`ETXTBSY`), as while plugins are
/// installed. libcni, too, goes on for five seconds (`RawExec.ExecPlugin`).
const BUSY: (u32, Duration) = (100, Duration::from_millis(50));

/// Finds a plugin in the folders of `CNI_PATH`.
pub fn find(path: &[PathBuf], name: &str) -> Result<PathBuf, CniError> {
    check_plugin(name)?;
    let found = path.iter().map(|folder| folder.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| {
        let folders: Vec<_> = path.iter().map(|folder| folder.display().to_string()).collect();
        let place = folders.first().map_or("one of the runtime's plugin folders", String::as_str);
        let msg = format!("failed to find plugin {name:?} in path [{}]", folders.join(" "));
        CniError::new(code::NO_DELEGATE, msg).with_details(format!(
            "put it into {place}: the standard plugins are in the package containernetworking-plugins (Debian has them \
             in /usr/lib/cni) and at https://github.com/containernetworking/plugins/releases"
        ))
    })
}

/// Runs a plugin to its end and returns its stdout. It inherits our environment and stderr; for GC, `gone` replaces the
/// attachment in its environment. Its error object becomes ours, with what was tried in front of the message.
pub fn run(program: &Path, verb: Verb, gone: Option<&Attachment>, stdin: File) -> Result<Vec<u8>, CniError> {
    let tried = format!("failed to delegate {}", verb.name().to_lowercase());
    let mut command = Command::new(program);
    command.env("CNI_COMMAND", verb.name()).stdin(stdin).stderr(Stdio::inherit());
    if let Some(attachment) = gone {
        command.env("CNI_CONTAINERID", attachment.container_id()).env("CNI_IFNAME", attachment.ifname());
        // The container is gone, and so is its namespace.
        command.env("CNI_NETNS", "");
    }
    let died = |problem: String| {
        let msg = format!("{tried}: plugin {} {problem}", program.display());
        CniError::new(code::DELEGATE_DIED, msg).with_details(
            "the plugin wrote its reason, if any, to stderr: see the log of the container runtime",
        )
    };
    let output = output(&mut command).map_err(|error| died(format!("could not be run: {error}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(match (CniError::from_json(&output.stdout), output.status.signal()) {
        (Some(error), _) => error.context(&tried),
        (None, Some(signal)) => died(format!("was killed by signal {signal}")),
        (None, None) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let status = output.status.code().unwrap_or(-1);
            died(format!("failed with status {status} and no error object: {:?}", said.trim()))
        }
    })
}

fn output(command: &mut Command) -> io::Result<Output> {
    let (times, pause) = BUSY;
    for _ in 0..times {
        match command.output() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => std::thread::sleep(pause),
            ended => return ended,
        }
    }
    command.output()
}

/// A config as a plugin's stdin: a file in memory, so that we need not write to a pipe while the plugin reads.
pub fn stdin(config: &Object) -> Result<File, CniError> {
    let bytes = serde_json::to_vec(config).expect("a JSON object can be written");
    let file = memfd_create(c"cni-config", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from);
    let file = file.map(File::from).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.rewind()?;
        Ok(file)
    });
    file.map_err(|error| CniError::io("failed to make a file in memory", &error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn script(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("fake");
        std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        (folder, program)
    }

    fn run_script(text: &str, gone: Option<&Attachment>) -> Result<String, CniError> {
        let (_folder, program) = script(text);
        let config = serde_json::json!({"name": "n"}).as_object().cloned().unwrap();
        let output = run(&program, Verb::Add, gone, stdin(&config).unwrap());
        output.map(|stdout| String::from_utf8(stdout).unwrap())
    }

    #[test]
    fn the_plugin_gets_config_and_verb_and_gives_its_result() {
        assert_eq!(run_script("cat; echo $CNI_COMMAND", None).unwrap(), "{\"name\":\"n\"}ADD\n");
        let gone = Attachment::new("c", "net1").unwrap();
        let said = run_script("echo $CNI_CONTAINERID $CNI_IFNAME \"[$CNI_NETNS]\"", Some(&gone)).unwrap();
        assert_eq!(said, "c net1 []\n");
        // Much output and nobody who reads the input.
        assert_eq!(run_script("head -c 200000 /dev/zero", None).unwrap().len(), 200_000);
    }

    #[test]
    fn a_plugin_that_is_being_written_is_run_once_it_is_there() {
        let (_folder, program) = script("echo done");
        let writer = File::options().append(true).open(&program).unwrap();
        let end = std::thread::spawn(move || {
            std::thread::sleep(2 * BUSY.1);
            drop(writer);
        });
        let ended = run(&program, Verb::Add, None, stdin(&Object::new()).unwrap());
        assert_eq!(ended.unwrap(), b"done\n");
        end.join().unwrap();
    }

    #[test]
    fn failures_say_what_was_tried() {
        let error =
            run_script(r#"echo '{"code":11,"msg":"busy","details":"later"}'; exit 1"#, None).unwrap_err();
        assert_eq!(error.to_string(), "failed to delegate add: busy (code 11); later");
        for (text, problem) in [
            ("echo oops; exit 3", "failed with status 3 and no error object: \"oops\""),
            ("kill -9 $$", "was killed by signal 9"),
        ] {
            let error = run_script(text, None).unwrap_err();
            assert_eq!(error.code, code::DELEGATE_DIED);
            assert!(
                error.msg.starts_with("failed to delegate add: plugin /") && error.msg.ends_with(problem),
                "{error}"
            );
        }
        let error =
            run(Path::new("/proc/self/stat"), Verb::Del, None, stdin(&Object::new()).unwrap()).unwrap_err();
        assert!(
            error.msg.contains("failed to delegate del") && error.msg.contains("could not be run"),
            "{error}"
        );
    }

    #[test]
    fn a_plugin_that_is_missing_is_named_with_folder_and_package() {
        let path = [PathBuf::from("/no"), PathBuf::from("/bin")];
        assert_eq!(find(&path, "sh").unwrap(), Path::new("/bin/sh"));
        let error = find(&path, "bridge").unwrap_err();
        assert_eq!(error.code, code::NO_DELEGATE);
        assert_eq!(error.msg, r#"failed to find plugin "bridge" in path [/no /bin]"#);
        assert!(
            error.details.starts_with("put it into /no:")
                && error.details.contains("containernetworking-plugins")
        );
        assert_eq!(find(&path, "../bin/sh").unwrap_err().code, code::INVALID_CONFIG);
        assert!(find(&[], "x").is_err());
    }
}
