//! The newest item of each flow in a batch.

use std::net::IpAddr;

use crate::packet::{IpHeader, be32};

/// The key of a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FlowKey {
    source: u128,
    destination: u128,
    ports: u32,
    protocol: u8,
    v6: bool,
}

impl FlowKey {
    /// The key of a packet whose transport header begins with two ports.
    pub(super) fn new(packet: &[u8], ip: &IpHeader) -> Self {
        let bits = |addr| match addr {
            IpAddr::V4(addr) => u128::from(addr.to_bits()),
            IpAddr::V6(addr) => addr.to_bits(),
        };
        Self {
            source: bits(ip.source),
            destination: bits(ip.destination),
            ports: be32(packet, ip.header_len),
            protocol: ip.protocol,
            v6: ip.source.is_ipv6(),
        }
    }

    fn hash(&self) -> u64 {
        // Multiplied and folded like FxHash: fast, and a collision only costs a merge.
        let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        let [mut hash, high] = [self.source as u64, (self.source >> 64) as u64];
        for word in [high, self.destination as u64, (self.destination >> 64) as u64, self.ports.into()] {
            hash = mix(hash, word);
        }
        mix(hash, self.protocol.into()) >> 32
    }
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// The generation it was set in; older ones are empty.
    generation: u32,
    item: u32,
    key: FlowKey,
}

/// One entry for each hash. Two flows with the same hash evict each other, which begins new items and so keeps the
/// order; a look-up never returns an item that is not its flow's newest.
#[derive(Debug)]
pub(super) struct FlowTable {
    slots: Vec<Slot>,
    generation: u32,
}

impl FlowTable {
    pub(super) fn new(capacity: usize) -> Self {
        let empty = Slot { generation: 0, item: 0, key: FlowKey::default() };
        Self { slots: vec![empty; (capacity * 2).next_power_of_two()], generation: 1 }
    }

    pub(super) fn newest(&self, key: &FlowKey) -> Option<u32> {
        let slot = &self.slots[self.place(key)];
        (slot.generation == self.generation && slot.key == *key).then_some(slot.item)
    }

    pub(super) fn set_newest(&mut self, key: &FlowKey, item: u32) {
        let place = self.place(key);
        self.slots[place] = Slot { generation: self.generation, item, key: *key };
    }

    pub(super) fn forget_all(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            self.slots.iter_mut().for_each(|slot| slot.generation = 0);
            self.generation = 1;
        }
    }

    fn place(&self, key: &FlowKey) -> usize {
        key.hash() as usize & (self.slots.len() - 1)
    }
}
