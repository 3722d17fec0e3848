//! Devices in memory, and what fuzz targets call.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use flannel_core::addr::{LinkIndex, Mtu};
use flannel_core::kernel::{Kernel, Link, LinkKind, LinkOp};
use flannel_core::netns::Netns;
use tokio::sync::Notify;

use crate::device::{Change, Device, DeviceState, ReadState};
use crate::key::PublicKey;
use crate::provider::{CreateError, NewDevice, Provider, create};
use crate::seen::apply;

/// WireGuard devices in memory, whose links a [`FakeKernel`](flannel_core::testing::FakeKernel) has. Clones share them.
#[derive(Clone, Default)]
pub struct FakeDevices {
    inner: Arc<Mutex<Inner>>,
    in_process: bool,
}

#[derive(Default)]
struct Inner {
    states: BTreeMap<LinkIndex, DeviceState>,
    changes: Vec<Change>,
    reads: usize,
    expected: BTreeSet<PublicKey>,
    ended: BTreeSet<LinkIndex>,
    closed: BTreeSet<LinkIndex>,
    alarms: Vec<Arc<Notify>>,
    failure: Option<io::ErrorKind>,
}

impl FakeDevices {
    /// Devices that are taken for those of this process: their links have the kind of a TUN, and go with them.
    pub fn in_process() -> Self {
        Self { in_process: true, ..Self::default() }
    }

    /// Stops a device in this process.
    pub fn end(&self, link: LinkIndex) {
        let mut inner = self.lock();
        inner.ended.insert(link);
        inner.alarms.iter().for_each(|alarm| alarm.notify_one());
    }

    /// Whether nobody has a link's device any more.
    pub fn is_closed(&self, link: LinkIndex) -> bool {
        self.lock().closed.contains(&link)
    }

    /// The peers that devices were told to expect.
    pub fn expected(&self) -> Vec<PublicKey> {
        self.lock().expected.iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The content of a link's device.
    pub fn state(&self, link: LinkIndex) -> DeviceState {
        self.lock().states.get(&link).cloned().unwrap_or_default()
    }

    /// Changes a device behind the agent's back.
    pub fn edit(&self, link: LinkIndex, edit: impl FnOnce(&mut DeviceState)) {
        edit(self.lock().states.entry(link).or_default());
    }

    /// The changes that were made since this was asked last.
    pub fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.lock().changes)
    }

    /// How often a device was read.
    pub fn reads(&self) -> usize {
        self.lock().reads
    }

    /// Lets all further calls fail, or succeed again.
    pub fn fail(&self, with: Option<io::ErrorKind>) {
        self.lock().failure = with;
    }
}

#[async_trait]
impl Provider for FakeDevices {
    fn kind(&self) -> &'static str {
        if self.in_process { "tun" } else { "wireguard" }
    }

    fn name(&self) -> &'static str {
        "memory"
    }

    fn supersedes(&self) -> Option<&'static str> {
        self.in_process.then_some("wireguard")
    }

    fn plan(&self, name: &str, mtu: Mtu) -> Option<LinkOp> {
        (!self.in_process).then(|| create(name, mtu))
    }

    async fn create(
        &self,
        kernel: &mut dyn Kernel,
        new: &NewDevice<'_>,
    ) -> Result<Option<Arc<dyn Device>>, CreateError> {
        if !self.in_process {
            kernel.change_link(&create(new.name, new.mtu)).await?;
            return Ok(None);
        }
        let kind = LinkKind::new("tun", []);
        let make = LinkOp::Create { name: new.name.to_owned(), mac: None, mtu: Some(new.mtu), kind };
        kernel.change_link(&make).await?;
        let link = kernel.link(new.name).await?.expect("it was just made");
        self.lock().alarms.push(Arc::clone(&new.alarm));
        Ok(Some(Arc::new(FakeDevice { all: self.clone(), link: link.index })))
    }

    async fn open(&self, _: &Netns, link: &Link) -> io::Result<Arc<dyn Device>> {
        Ok(Arc::new(FakeDevice { all: self.clone(), link: link.index }))
    }
}

struct FakeDevice {
    all: FakeDevices,
    link: LinkIndex,
}

impl Drop for FakeDevice {
    fn drop(&mut self) {
        self.all.lock().closed.insert(self.link);
    }
}

impl FakeDevice {
    fn read(&self) -> io::Result<DeviceState> {
        let mut all = self.all.lock();
        all.reads += 1;
        match all.failure {
            Some(kind) => Err(kind.into()),
            None => Ok(all.states.get(&self.link).cloned().unwrap_or_default()),
        }
    }
}

#[async_trait]
impl Device for FakeDevice {
    async fn state(&self) -> io::Result<DeviceState> {
        self.read()
    }

    async fn apply(&self, changes: &[Change]) -> io::Result<()> {
        let mut all = self.all.lock();
        if let Some(kind) = all.failure {
            return Err(kind.into());
        }
        all.changes.extend_from_slice(changes);
        apply(all.states.entry(self.link).or_default(), changes);
        Ok(())
    }

    fn reader(self: Arc<Self>) -> Option<Arc<ReadState>> {
        Some(Arc::new(move || self.read()))
    }

    fn expect(&self, peers: &[PublicKey]) {
        self.all.lock().expected.extend(peers);
    }

    fn has_ended(&self) -> bool {
        self.all.lock().ended.contains(&self.link)
    }
}

/// Reads bytes as two messages of the kernel's answer, cut anywhere.
///
/// # Panics
///
/// If any bytes make the reader panic, or if the same bytes are read differently a second time.
pub fn dump(data: &[u8]) {
    let read = |parts: &[&[u8]]| {
        let mut reader = crate::kernel::wire::Reader::default();
        parts.iter().try_for_each(|part| reader.add(part)).map(|()| reader.finish())
    };
    let (cut, rest) = data.split_first().map_or((0, data), |(cut, rest)| (usize::from(*cut), rest));
    let (one, two) = rest.split_at(cut.min(rest.len()));
    assert_eq!(read(&[one, two]), read(&[one, two]));
    let _ = read(&[rest]);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn stored_and_changed_answers_are_read_without_a_panic() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/dump");
        flannel_core::testing::fuzz::replay(&folder, 20_000, super::dump);
    }
}
