//! Writing the attributes of a message of `nf_tables`: type, length, value, and others nested in it. Pure.

/// Attributes that are being written. `nf_tables` has numbers in network order.
#[derive(Debug, Default)]
pub(super) struct Attrs(Vec<u8>);

impl Attrs {
    /// No attributes yet, behind the header of a message.
    pub(super) fn after(header: Vec<u8>) -> Self {
        Self(header)
    }

    /// Appends an attribute.
    pub(super) fn put(&mut self, kind: u16, payload: &[u8]) {
        let len = u16::try_from(payload.len() + 4).expect("lists are cut so that they fit");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Appends a number.
    pub(super) fn u32(&mut self, kind: u16, number: u32) {
        self.put(kind, &number.to_be_bytes());
    }

    /// Appends text.
    pub(super) fn string(&mut self, kind: u16, text: &str) {
        self.put(kind, &[text.as_bytes(), &[0]].concat());
    }

    /// Appends an attribute that has others in it.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        // NLA_F_NESTED
        self.put(kind | 0x8000, &inner.0);
    }

    /// The bytes, the header among them.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
