//! Packs what a bug report needs into one `.tar.gz`, without secrets: the doctor's report, the agent's files, what the store
//! has, and what `ip`, `bridge`, `nft` and `iptables-save` show. What can't be collected is named in `manifest.txt`, with
//! the reason.
//!
//! Every text goes through [`Redactor`] on its way. Files with credentials, such as kubeconfigs, keys and service account
//! tokens, are never read.

mod collect;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use flannel_core::atomic_file;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::doctor::Doctor;
use crate::redact::Redactor;
use crate::report::Report;

/// The folder in the archive.
const FOLDER: &str = "flannel-bundle";

/// What to pack.
#[derive(Debug, Clone)]
#[must_use]
pub struct Bundle {
    doctor: Doctor,
    redactor: Redactor,
    texts: Vec<(String, String)>,
    logs: Vec<PathBuf>,
}

/// A bundle that was written.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Packed {
    /// What the doctor found.
    pub report: Report,
    /// The names of the files in it.
    pub files: Vec<String>,
}

/// The bundle can't be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write the bundle {}", path.display())]
#[non_exhaustive]
pub struct BundleError {
    /// Its path.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    /// Where it comes from: a path, or a command.
    origin: String,
    /// The text, or why there is none.
    text: Result<String, String>,
}

impl Bundle {
    /// A bundle with the report of a doctor, and what belongs to the host, places and store of that doctor.
    pub fn new(doctor: Doctor) -> Self {
        Self { doctor, redactor: Redactor::new(), texts: Vec::new(), logs: Vec::new() }
    }

    /// Another redactor: one that knows the passwords of this host.
    pub fn redactor(self, redactor: Redactor) -> Self {
        Self { redactor, ..self }
    }

    /// Adds a text, such as the version of the program and its flags.
    pub fn text(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.texts.push((name.into(), text.into()));
        self
    }

    /// Adds the end of a log file, 8 MiB at most.
    pub fn log(mut self, path: impl Into<PathBuf>) -> Self {
        self.logs.push(path.into());
        self
    }

    /// Examines the host, and writes the bundle with the mode 0600. A regular file of that name is replaced; anything else,
    /// such as a device node or a link, is an error.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub async fn write(&self, path: &Path) -> Result<Packed, BundleError> {
        let refused = |source| BundleError { path: path.to_owned(), source };
        refuse_other_than_files(path).map_err(refused)?;
        let (report, facts) = self.doctor.examine_with_facts().await;
        let mut entries =
            vec![Entry::own("report.txt", report.to_string()), Entry::own("report.json", report.to_json())];
        entries.extend(self.texts.iter().map(|(name, text)| Entry::own(name, text.clone())));
        match &facts {
            Ok(facts) => entries.extend(collect::all(facts, &self.logs).await),
            Err(why) => entries.push(Entry {
                name: "facts".to_owned(),
                origin: "this host".to_owned(),
                text: Err(why.0.clone()),
            }),
        }
        let entries = self.redacted(entries);
        let bytes = pack(&entries).map_err(refused)?;
        refuse_other_than_files(path).map_err(refused)?;
        atomic_file::replace(path, &bytes, 0o600).map_err(refused)?;
        Ok(Packed { report, files: entries.into_iter().map(|(name, _)| name).collect() })
    }

    /// The files without secrets, and the list of all.
    fn redacted(&self, entries: Vec<Entry>) -> Vec<(String, String)> {
        let mut manifest = String::new();
        let mut files = Vec::new();
        for Entry { name, origin, text } in entries {
            let line = match &text {
                Ok(text) => format!("{name}: {origin}, {} bytes\n", text.len()),
                Err(why) => format!("{name}: {origin}, missing: {why}\n"),
            };
            manifest.push_str(&line);
            if let Ok(text) = text {
                files.push((name, self.redactor.text(&text)));
            }
        }
        files.push(("manifest.txt".to_owned(), self.redactor.text(&manifest)));
        files
    }
}

/// Fails if there is something at a path that a bundle must not take the place of: `/dev/stdout` is a link.
fn refuse_other_than_files(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(io::Error::other("what is there is no regular file, so it stays; name a new file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

impl Entry {
    fn own(name: &str, text: String) -> Self {
        Self { name: name.to_owned(), origin: "the doctor".to_owned(), text: Ok(text) }
    }
}

fn pack(files: &[(String, String)]) -> io::Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("{FOLDER}/{name}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()
}
