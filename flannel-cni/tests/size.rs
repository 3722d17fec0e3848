//! The program as it is shipped: static, stripped and small.

use std::fs;
use std::process::Command;

use flannel_lab::cni_plugin::{self, Libc};

const MIB: u64 = 1 << 20;

#[test]
fn the_shipped_program_is_small_and_needs_no_libraries() {
    let built = cni_plugin::build().unwrap();
    let size = fs::metadata(&built.program).unwrap().len();
    // A static Rust program with glibc that does nothing has 1.1 MiB.
    let limit = if built.libc == Libc::Musl { MIB } else { MIB * 3 / 2 };
    println!("{}: {size} bytes, {:?}", built.program.display(), built.libc);
    assert!(size < limit, "{size} bytes with {:?}", built.libc);
    let bytes = fs::read(&built.program).unwrap();
    assert!(
        !bytes.windows(6).any(|window| window == b"ld-lin" || window == b"ld-mus"),
        "it has a dynamic loader"
    );

    let output = Command::new(&built.program).env("CNI_COMMAND", "VERSION").output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["cniVersion"], "1.1.0");
}
