//! The table in use, and its replacement by a new one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Holds the current table. A writer replaces it; readers check once in each batch for a new one.
///
/// A reader never waits: it reads a number, and only if that has changed it tries the lock, under which only two
/// pointers are exchanged. If the lock is taken at that moment, the next batch gets the new table.
#[derive(Debug)]
pub struct TableCell<T> {
    epoch: AtomicU64,
    current: Mutex<Arc<T>>,
    /// Tables that readers may still use. The writer frees them, since freeing takes time that readers don't have.
    retired: Mutex<Vec<Arc<T>>>,
}

impl<T> TableCell<T> {
    /// A cell with its first table.
    pub fn new(table: T) -> Arc<Self> {
        Arc::new(Self {
            epoch: AtomicU64::new(0),
            current: Mutex::new(Arc::new(table)),
            retired: Mutex::new(Vec::new()),
        })
    }

    /// Replaces the table.
    pub fn set(&self, table: T) {
        let table = Arc::new(table);
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|table| Arc::strong_count(table) > 1);
        retired.reserve(1);
        let old = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            let old = std::mem::replace(&mut *current, table);
            self.epoch.fetch_add(1, Ordering::Release);
            old
        };
        retired.push(old);
    }

    /// The current table.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A reader with the current table.
    pub fn reader(self: &Arc<Self>) -> TableReader<T> {
        let epoch = self.epoch.load(Ordering::Acquire);
        TableReader { cell: Arc::clone(self), epoch, table: self.get() }
    }
}

/// One thread's reference to the table.
#[derive(Debug)]
pub struct TableReader<T> {
    cell: Arc<TableCell<T>>,
    epoch: u64,
    table: Arc<T>,
}

impl<T> TableReader<T> {
    /// The table for this batch: the newest, unless it is being replaced right now.
    pub fn refresh(&mut self) -> &T {
        let epoch = self.cell.epoch.load(Ordering::Acquire);
        if epoch != self.epoch
            && let Ok(current) = self.cell.current.try_lock()
        {
            // The retired list still has the old one, so this frees nothing.
            self.table = Arc::clone(&current);
            self.epoch = epoch;
        }
        &self.table
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ForwardingTable, TableSpec};
    use super::*;
    use flannel_core::addr::Mtu;

    fn table(mtu: u32) -> ForwardingTable {
        ForwardingTable::new(TableSpec { overlay_mtu: Some(Mtu(mtu)), ..TableSpec::default() }, None)
    }

    #[test]
    fn a_reader_follows_without_waiting() {
        let cell = TableCell::new(table(1));
        let mut reader = cell.reader();
        cell.set(table(2));
        assert_eq!(reader.refresh().overlay_mtu, Some(Mtu(2)));
        cell.set(table(3));
        {
            let _held = cell.current.lock().unwrap();
            assert_eq!(reader.refresh().overlay_mtu, Some(Mtu(2)), "the lock is taken: no waiting");
        }
        assert_eq!(reader.refresh().overlay_mtu, Some(Mtu(3)));
    }

    #[test]
    fn old_tables_are_freed_by_the_writer() {
        let cell = TableCell::new(table(1));
        let mut reader = cell.reader();
        let first = Arc::downgrade(&cell.get());
        cell.set(table(2));
        reader.refresh();
        assert_eq!(first.strong_count(), 1, "the reader let go, the writer holds it");
        cell.set(table(3));
        assert_eq!(first.strong_count(), 0);
    }
}
