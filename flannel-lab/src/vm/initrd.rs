//! The first root file system of a machine: a shell, and the modules that reach the real one.

use std::fs;
use std::path::Path;

use super::Kernel;
use crate::{LabError, exec};

/// What the host's root file system needs: the bus, the file system that shares it, and the one that keeps writes.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// The program that the kernel starts.
const INIT: &str = include_str!("first.sh");

/// Makes the archive that the kernel unpacks, in the `newc` format (the kernel's
/// `Documentation/driver-api/early-userspace/buffer-format.rst`).
pub(super) fn build(kernel: &Kernel) -> Result<Vec<u8>, LabError> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "host", "modules", "proc", "root", "rw", "sys"] {
        archive.folder(folder);
    }
    let busybox = exec::find("busybox")?;
    archive.program("bin/busybox", &read(&busybox)?);
    archive.program("init", INIT.as_bytes());
    let mut order = String::new();
    for module in modules(kernel)? {
        let path = Path::new(&module);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let plain = name.trim_end_matches(".xz");
        let bytes = if plain == name { read(path)? } else { unpacked(path)? };
        archive.program(&format!("modules/{plain}"), &bytes);
        order.extend([plain, "\n"]);
    }
    archive.program("modules/order", order.as_bytes());
    Ok(archive.finish())
}

/// The files of the modules, each after those that it needs.
fn modules(kernel: &Kernel) -> Result<Vec<String>, LabError> {
    let mut modprobe = exec::command("modprobe")?;
    modprobe.arg("--dirname").arg(kernel.root()).args(["--set-version", kernel.release()]);
    modprobe.args(["--show-depends", "--all"]).args(MODULES);
    let mut files: Vec<String> = Vec::new();
    for line in exec::output(modprobe)?.lines() {
        // Others are built in.
        let file = line.strip_prefix("insmod ").map(|rest| rest.trim().to_owned());
        files.extend(file.filter(|file| !files.contains(file)));
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, LabError> {
    fs::read(path).map_err(LabError::io(format!("reading {}", path.display())))
}

fn unpacked(path: &Path) -> Result<Vec<u8>, LabError> {
    let mut xz = exec::command("xz")?;
    xz.args(["--decompress", "--stdout"]).arg(path);
    exec::bytes(xz)
}

/// A `newc` archive in the making.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a module is smaller than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        // inode, mode, owner, group, links, time, size, device, special device (major, minor each), name's size, no checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn another_program_reads_the_archive() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.program("bin/one", b"1");
        archive.program("init", b"#!/bin/one\n");
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("archive"), archive.finish()).unwrap();
        let script =
            "busybox cpio -i <archive 2>/dev/null && stat -c '%n %a %s' bin bin/one init && cat init";
        let output = Command::new("sh").args(["-c", script]).current_dir(place.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("bin/one 755 1\ninit 755 11\n#!/bin/one\n"), "{output:?}");
    }
}
