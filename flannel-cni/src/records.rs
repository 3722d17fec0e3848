//! What ADD leaves for DEL: the delegate's config, one file an attachment.
//!
//! The file of `eth0` is named for the container alone, as by upstream's plugin, and others
//! `<container>:<interface>`, so that an upgrade or a downgrade finds what the other plugin attached.
//!
//! A file is locked while a delegate runs with it, by the delegate's own stdin. A runtime that kills ADD
//! leaves the delegate at work; DEL then waits for its end, as it could else free addresses that the delegate
//! is about to take.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::args::Attachment;
use crate::error::{CniError, code};
use crate::netconf::Object;

/// The interface that upstream's file names stand for.
const FIRST: &str = "eth0";

/// The folder of records.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
}

/// An open, locked record. The lock ends with the last holder of the file, be it a delegate.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    file: File,
}

impl Records {
    /// Those in a folder, which [`save`](Self::save) makes if need be.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Where an attachment's record is.
    pub fn path(&self, attachment: &Attachment) -> PathBuf {
        self.folder.join(file_name(attachment))
    }

    /// Where it is written before it is put in place. Always the same name, so that DEL finds what a killed ADD
    /// left; no container's name begins with a dot.
    fn draft(&self, attachment: &Attachment) -> PathBuf {
        self.folder.join(format!(".{}.tmp", file_name(attachment)))
    }

    /// Writes a record in one step: a crash leaves the old one or the new one, never a part.
    pub fn save(&self, attachment: &Attachment, config: &Object) -> Result<Record, CniError> {
        let (path, draft) = (self.path(attachment), self.draft(attachment));
        let bytes = serde_json::to_vec(config).expect("a JSON object can be written");
        let write = || -> io::Result<File> {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&draft)?;
            // A file system without locks has none of these guarantees, and still works.
            let _ = file.try_lock();
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.folder)?.sync_all()?;
            Ok(file)
        };
        match write() {
            Ok(file) => Ok(Record { path, file }),
            Err(error) => {
                let _ = fs::remove_file(&draft);
                Err(CniError::io(
                    format!("failed to save the delegate's config as {}", path.display()),
                    &error,
                )
                .with_details(
                    "nothing was attached; the disk may be full or read-only: see `df` and `mount`",
                ))
            }
        }
    }

    /// Opens an attachment's own record, `None` if it has none. Waits so long for a delegate that still runs.
    pub fn open(&self, attachment: &Attachment, patience: Duration) -> Result<Option<Record>, CniError> {
        let path = self.path(attachment);
        let deadline = Instant::now() + patience;
        loop {
            let Some(file) = found(File::open(&path), &path)? else { return Ok(None) };
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Err(busy(&path)),
                Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(5)),
                // What was waited for may have removed or replaced the file.
                Ok(()) if !is_at(&file, &path) => {}
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(Some(Record { path, file })),
            }
        }
    }

    /// Opens what upstream's plugin may have recorded of an attachment of another interface than `eth0`: the
    /// container's file. Whether it is meant can't be told, so it is for reading only. `None` if there is none.
    pub fn upstreams(&self, attachment: &Attachment, patience: Duration) -> Result<Option<Record>, CniError> {
        let first = Attachment::new(attachment.container_id(), FIRST)?;
        if first == *attachment { Ok(None) } else { self.open(&first, patience) }
    }

    /// Reads an attachment's record without waiting for anybody.
    pub fn peek(&self, attachment: &Attachment) -> Result<Option<Record>, CniError> {
        let path = self.path(attachment);
        Ok(found(File::open(&path), &path)?.map(|file| Record { path, file }))
    }

    /// Removes what an ADD left that was killed while it wrote; never that of one at work.
    pub fn remove_draft(&self, attachment: &Attachment) {
        let draft = self.draft(attachment);
        if let Ok(file) = File::open(&draft)
            && !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
        {
            // The next ADD writes over what can't be removed.
            let _ = fs::remove_file(&draft);
        }
    }

    /// All attachments that have a record, or the draft of one, in order.
    pub fn list(&self) -> Result<Vec<Attachment>, CniError> {
        let Some(entries) = found(fs::read_dir(&self.folder), &self.folder)? else { return Ok(Vec::new()) };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut attachments: Vec<_> = names.filter_map(|name| attachment_of(&name)).collect();
        attachments.sort();
        attachments.dedup();
        Ok(attachments)
    }
}

impl Record {
    /// The delegate's config.
    pub fn config(&mut self) -> Result<Object, CniError> {
        let mut bytes = Vec::new();
        let read = self.file.rewind().and_then(|()| self.file.read_to_end(&mut bytes));
        read.map_err(|error| CniError::io(format!("failed to read {}", self.path.display()), &error))?;
        parse(&bytes).map_err(|problem| {
            let path = self.path.display();
            CniError::new(
                code::BAD_RECORD,
                format!("the record {path} of this attachment is damaged: {problem}"),
            )
            .with_details(format!(
                "it can't be told what to detach. Run `rm {path}`; addresses that leak are files below \
                     /var/lib/cni/networks/<network> with the container's name in them"
            ))
        })
    }

    /// Itself as a delegate's stdin. The delegate then holds the lock, too.
    pub fn stdin(&mut self) -> Result<File, CniError> {
        let file = self.file.rewind().and_then(|()| self.file.try_clone());
        file.map_err(|error| CniError::io(format!("failed to read {}", self.path.display()), &error))
    }

    /// Removes it, once the delegate has detached what it is about.
    pub fn remove(self) -> Result<(), CniError> {
        if !is_at(&self.file, &self.path) {
            return Ok(()); // it is gone, or another took its place
        }
        let removed = found(fs::remove_file(&self.path), &self.path);
        removed.map(drop)
    }
}

/// Reads a record; an error says what is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Object, String> {
    let config: Object = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    for key in ["name", "type"] {
        if !config.get(key).is_some_and(serde_json::Value::is_string) {
            return Err(format!("it has no {key}"));
        }
    }
    Ok(config)
}

fn file_name(attachment: &Attachment) -> String {
    match (attachment.container_id(), attachment.ifname()) {
        (container, FIRST) => container.to_owned(),
        // Neither name can have a colon in it.
        (container, ifname) => format!("{container}:{ifname}"),
    }
}

/// The attachment that a file of the folder is about.
fn attachment_of(name: &str) -> Option<Attachment> {
    let draft = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    let (container, ifname) = draft.unwrap_or(name).split_once(':').unwrap_or((draft.unwrap_or(name), FIRST));
    Attachment::new(container, ifname).ok()
}

/// "Not found" as `None`.
fn found<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, CniError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CniError::io(path.display(), &error)),
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => place(open) == place(there),
        _ => false,
    }
}

fn busy(path: &Path) -> CniError {
    let path = path.display();
    CniError::new(
        code::TRY_AGAIN,
        format!("a delegate is still at work on this attachment ({path} is locked)"),
    )
    .with_details(format!("the runtime will try again; `fuser -v {path}` shows the process"))
}

#[cfg(test)]
mod tests;
