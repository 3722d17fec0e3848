//! How much of each node the API server is asked for.

/// What is asked for of each node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// The object as it is: 10 KB and more, most of it the images that a node has.
    Whole,
    /// Its metadata alone, in which a lease is but for its subnets: a third or less.
    Metadata,
}

impl View {
    /// The kind of object that a server sends in [`View::Metadata`].
    pub(super) const METADATA_KIND: &str = "PartialObjectMetadata";

    /// The header `Accept` of a list. A server that can't send metadata alone may choose whole objects.
    pub(super) fn of_list(self) -> Option<&'static str> {
        match self {
            Self::Whole => None,
            Self::Metadata => {
                Some("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json")
            }
        }
    }

    /// The header `Accept` of a watch.
    pub(super) fn of_watch(self) -> Option<&'static str> {
        match self {
            Self::Whole => None,
            Self::Metadata => {
                Some("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json")
            }
        }
    }
}
