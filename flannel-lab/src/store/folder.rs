//! The local store: a folder that all agents see.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Server, Store};
use crate::LabError;

/// The file that becomes a record, or the config, once it is whole.
const DRAFT: &str = ".draft-of-the-lab";

/// A folder as the store.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new, empty store in this folder. What was there is removed.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, LabError> {
        let path = path.into();
        let what = || LabError::io(format!("a new store in {}", path.display()));
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(what()(error)),
            _ => fs::create_dir_all(path.join("subnets")).map_err(what())?,
        }
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn record(&self, key: &str) -> PathBuf {
        self.0.join("subnets").join(key)
    }

    /// Where it is while it is not to be found.
    fn hidden(&self) -> PathBuf {
        self.0.with_extension("hidden")
    }
}

impl Store for Folder {
    fn flags(&self) -> Vec<String> {
        vec![format!("--store=local:{}", self.0.display())]
    }

    fn put_config(&self, config: &str) -> Result<(), LabError> {
        write_whole(&self.0.join("config"), config.as_bytes())
    }

    fn put_bytes(&self, key: &str, value: &[u8]) -> Result<(), LabError> {
        write_whole(&self.record(key), value)
    }

    fn delete(&self, key: &str) -> Result<(), LabError> {
        let path = self.record(key);
        fs::remove_file(&path).map_err(LabError::io(format!("removing {}", path.display())))
    }

    fn records(&self) -> Result<BTreeMap<String, String>, LabError> {
        let folder = self.0.join("subnets");
        let what = || LabError::io(format!("reading {}", folder.display()));
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(what())? {
            let entry = entry.map_err(what())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                records.insert(name, fs::read_to_string(entry.path()).map_err(what())?);
            }
        }
        Ok(records)
    }
}

/// It can't be found while it is paused, as a file system that is not mounted. It has no process to end.
impl Server for Folder {
    fn pause(&self) -> Result<(), LabError> {
        fs::rename(&self.0, self.hidden()).map_err(LabError::io(format!("hiding {}", self.0.display())))
    }

    fn resume(&self) -> Result<(), LabError> {
        fs::rename(self.hidden(), &self.0).map_err(LabError::io(format!("showing {}", self.0.display())))
    }

    fn kill(&self) -> Result<(), LabError> {
        Err(no_server())
    }

    fn restart(&self) -> Result<(), LabError> {
        Err(no_server())
    }

    fn compact(&self) -> Result<(), LabError> {
        Err(no_server())
    }
}

fn no_server() -> LabError {
    LabError::Invalid("a folder has no server".into())
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), LabError> {
    // Two threads that write at once must not have one draft: what one wrote would get the name of the other's.
    let draft = path.with_file_name(format!("{DRAFT}{:?}", std::thread::current().id()));
    let written = fs::write(&draft, bytes).and_then(|()| fs::rename(draft, path));
    written.map_err(LabError::io(format!("writing {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_go_and_are_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let store = Folder::new(dir.path().join("store")).unwrap();
        store.put_config("{}").unwrap();
        store.put("a", "1").unwrap();
        store.put_bytes("b", b"2").unwrap();
        store.delete("a").unwrap();
        let records = BTreeMap::from([("b".to_owned(), "2".to_owned())]);
        assert_eq!(store.records().unwrap(), records);
        assert_eq!(store.everything().unwrap(), ["b 2"]);
        store.pause().unwrap();
        assert!(store.records().is_err() && !store.path().exists());
        store.resume().unwrap();
        assert_eq!(store.records().unwrap(), records);
        assert!(store.kill().is_err() && store.restart().is_err() && store.compact().is_err());
        assert!(Folder::new(store.path()).unwrap().records().unwrap().is_empty(), "a new one is empty");
    }
}
