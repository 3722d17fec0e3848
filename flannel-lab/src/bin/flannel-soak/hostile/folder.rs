//! Somebody who may write to the folder of a local store makes traps of its files.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::Scene;
use crate::Fallible;
use crate::lab::LIMIT;
use crate::store::{FOLDER, Store};

/// The node whose agent is started amid each of the traps.
pub(super) const NODE: u8 = 2;
/// How long a trap stands for an agent that starts, and for those that run, and how long there is none: an agent
/// that needs config or lock tries again and again.
const STAND: Duration = Duration::from_millis(1200);
const MOMENT: Duration = Duration::from_millis(200);
const PEACE: Duration = Duration::from_millis(800);
/// What a sparse file seems to hold, in bytes: more than an agent may take.
const SPARSE: u64 = 256 << 20;
/// A record that nobody else has.
const RECORD: &str = "10.42.189.0-24";
/// The subnets of records that are traps from the beginning to the end, also while an agent starts.
const STANDING: [u8; 5] = [184, 185, 186, 187, 188];
/// What stands in a file that no agent has to do with.
const SECRET: &str = "hostile-folder-secret";

/// What is put in the place of a file.
#[derive(Debug, Clone, Copy)]
enum Trap {
    LinkToSecret,
    LinkToNowhere,
    Pipe,
    Sparse,
    Folder,
}

const TRAPS: [Trap; 5] = [Trap::LinkToSecret, Trap::LinkToNowhere, Trap::Pipe, Trap::Sparse, Trap::Folder];

pub(super) fn run(scene: &Scene<'_>) -> Fallible<String> {
    let Store::Local(store) = &scene.lab.store else { return Err("there is no folder".into()) };
    let store = store.path();
    let secret = Path::new(FOLDER).join("secret");
    fs::write(&secret, SECRET)?;
    let before = fs::metadata(&secret)?.modified()?;
    let nowhere = Path::new(FOLDER).join("made-by-a-link");
    let standing = STANDING.map(|subnet| store.join(format!("subnets/10.42.{subnet}.0-24")));
    for (trap, at) in TRAPS.into_iter().zip(&standing) {
        set(trap, at, &secret, &nowhere)?;
    }
    let mut traps = TRAPS.len();
    for number in 0_usize.. {
        if scene.is_over() {
            break;
        }
        let trap = TRAPS[number % TRAPS.len()];
        let [config, hidden] = ["config", ".config-of-the-soak"].map(|name| store.join(name));
        set(trap, &store.join("subnets").join(RECORD), &secret, &nowhere)?;
        draft(store, number)?;
        let lock = store.join(".lock");
        let kept = store.join(".lock-of-the-soak");
        let had_lock = put_aside(&lock, &kept)?;
        set(trap, &lock, &secret, &nowhere)?;
        fs::rename(&config, &hidden)?;
        set(trap, &config, &secret, &nowhere)?;
        let clear = |after: Duration| -> Fallible<()> {
            scene.sleep(after);
            remove(&config)?;
            fs::rename(&hidden, &config)?;
            remove(&lock)?;
            if had_lock {
                fs::rename(&kept, &lock)?;
            }
            Ok(())
        };
        if number < TRAPS.len() {
            scene.restart_amid(NODE, || clear(STAND))?;
            // It is ready by what it stored before. Now it has to come to terms with the store.
            scene.lab.wait_for_model(&[NODE], Instant::now() + LIMIT)?;
        } else {
            clear(MOMENT)?;
        }
        remove(&store.join("subnets").join(RECORD))?;
        traps += 3;
        if nowhere.exists() {
            return Err(format!("an agent made {} through a link", nowhere.display()).into());
        }
        if fs::metadata(&secret)?.modified()? != before || fs::read_to_string(&secret)? != SECRET {
            return Err(format!("an agent changed {} through a link", secret.display()).into());
        }
        scene.sleep(PEACE);
    }
    standing.iter().try_for_each(|at| remove(at))?;
    for entry in fs::read_dir(store.join("subnets"))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(".hostile") {
            remove(&entry.path())?;
        }
    }
    for number in scene.lab.numbers() {
        if scene.lab.agent(number).log().contains(SECRET) {
            return Err(format!("node{number}'s log shows what a link in the folder leads to").into());
        }
    }
    Ok(format!("{traps} traps"))
}

/// Puts a trap where nothing is.
fn set(trap: Trap, at: &Path, secret: &Path, nowhere: &Path) -> Fallible<()> {
    match trap {
        Trap::LinkToSecret => symlink(secret, at)?,
        Trap::LinkToNowhere => symlink(nowhere, at)?,
        Trap::Pipe => mkfifo(at, Mode::S_IRUSR | Mode::S_IWUSR)?,
        Trap::Sparse => File::create(at)?.set_len(SPARSE)?,
        Trap::Folder => fs::create_dir(at)?,
    }
    Ok(())
}

/// Names that look like drafts of other writers, and never go.
fn draft(store: &Path, number: usize) -> io::Result<()> {
    let name = match number % 3 {
        0 => format!(".hostile-{number}"),
        1 => format!(".hostile-{number}.tmp"),
        _ => format!(".hostile-{}", "x".repeat(240)),
    };
    fs::write(store.join("subnets").join(name), b"{")
}

/// Whether there was something to put aside.
fn put_aside(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn remove(at: &Path) -> io::Result<()> {
    let removed = if at.is_dir() && !at.is_symlink() { fs::remove_dir(at) } else { fs::remove_file(at) };
    match removed {
        // Somebody honest took a file of this name that nobody may use.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
