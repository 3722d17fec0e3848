//! Which kinds of objects a read of the kernel is about.

/// Which kinds of objects to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds {
    /// Addresses of the link.
    pub addresses: bool,
    /// Its permanent neighbour entries.
    pub neighbours: bool,
    /// Its permanent FDB entries with a remote.
    pub fdb: bool,
    /// Next-hop objects of protocol 102 with one gateway through the link. A kernel without next-hop objects returns
    /// none.
    pub next_hops: bool,
    /// Routes of the main table through it.
    pub routes: bool,
}

impl Kinds {
    /// All kinds, for a device of our own.
    pub const ALL: Self =
        Self { addresses: true, neighbours: true, fdb: true, next_hops: true, routes: true };
    /// Routes only, for a link that others use, too.
    pub const ROUTES: Self =
        Self { addresses: false, neighbours: false, fdb: false, next_hops: false, routes: true };
    /// Next-hop objects only.
    pub const NEXT_HOPS: Self =
        Self { addresses: false, neighbours: false, fdb: false, next_hops: true, routes: false };
    const NONE: Self =
        Self { addresses: false, neighbours: false, fdb: false, next_hops: false, routes: false };

    /// The kinds of both.
    pub(crate) fn either(one: Self, other: Self) -> Self {
        Self {
            addresses: one.addresses || other.addresses,
            neighbours: one.neighbours || other.neighbours,
            fdb: one.fdb || other.fdb,
            next_hops: one.next_hops || other.next_hops,
            routes: one.routes || other.routes,
        }
    }

    /// Each kind on its own, in build-up order: next-hop objects before the routes that name them.
    pub fn each(self) -> impl Iterator<Item = Self> {
        let Self { addresses, neighbours, fdb, next_hops, routes } = self;
        let all = [
            Self { addresses, ..Self::NONE },
            Self { neighbours, ..Self::NONE },
            Self { fdb, ..Self::NONE },
            Self { next_hops, ..Self::NONE },
            Self { routes, ..Self::NONE },
        ];
        all.into_iter().filter(|kinds| *kinds != Self::NONE)
    }
}
