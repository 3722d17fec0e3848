//! Running programs to their end, with errors that show the command line and its stderr.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::LabError;

/// Where the programs of the lab come from, for the error when one is missing.
const PACKAGES: [(&str, &str); 17] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("ping", "iputils-ping"),
    ("openssl", "openssl"),
    ("curl", "curl"),
    ("apt-cache", "apt"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("modprobe", "kmod"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("xz", "xz-utils"),
];

/// Finds a program as the shell would; also in the `sbin`s, which users often lack in their PATH.
pub(crate) fn find(program: impl AsRef<Path>) -> Result<PathBuf, LabError> {
    let program = program.as_ref();
    let path = env::var_os("PATH").unwrap_or_default();
    let found = if program.components().count() > 1 {
        Some(program.to_owned()).filter(|file| file.is_file())
    } else {
        env::split_paths(&path)
            .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
            .map(|dir| dir.join(program))
            .find(|file| file.is_file())
    };
    found.ok_or_else(|| {
        let program = program.display().to_string();
        let package = PACKAGES.iter().find(|(name, _)| *name == program);
        LabError::MissingProgram {
            package: package.map_or("unknown, is it built?", |(_, package)| package),
            program,
        }
    })
}

/// A command for a program that must exist.
pub(crate) fn command(program: &str) -> Result<Command, LabError> {
    let mut command = Command::new(find(program)?);
    command.stdin(Stdio::null());
    Ok(command)
}

/// Runs to the end and returns stdout.
pub(crate) fn output(command: Command) -> Result<String, LabError> {
    output_with_input(command, "")
}

/// Runs to the end with `input` on stdin and returns stdout.
pub(crate) fn output_with_input(command: Command, input: &str) -> Result<String, LabError> {
    Ok(String::from_utf8_lossy(&run(command, input)?).into_owned())
}

/// Runs to the end and returns stdout, whatever bytes it has.
pub(crate) fn bytes(command: Command) -> Result<Vec<u8>, LabError> {
    run(command, "")
}

fn run(mut command: Command, input: &str) -> Result<Vec<u8>, LabError> {
    let line = describe(&command);
    let spawn = |source| LabError::Spawn { command: line.clone(), source };
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(spawn)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If the program stops reading, its stderr says why, which makes the better error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(spawn)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Failed {
        command: if input.is_empty() { line } else { format!("{line} <<< {input:?}") },
        status: output.status,
        stderr: if stderr.is_empty() { stdout.trim().to_owned() } else { stderr },
    })
}

/// The command line as one would type it.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let error = find("no-such-program").unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
        assert!(find("/no/such/etcd").is_err());
        assert!(find("ip").is_ok());
    }

    #[test]
    fn a_failure_shows_command_line_and_stderr() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo sorry >&2; exit 3"]);
        let error = output(command).unwrap_err().to_string();
        assert!(error.contains("sh -c echo sorry") && error.contains("sorry"), "{error}");
        assert!(error.contains('3'), "{error}");
    }

    #[test]
    fn input_arrives() {
        let command = Command::new("cat");
        assert_eq!(output_with_input(command, "a\nb\n").unwrap(), "a\nb\n");
    }
}
