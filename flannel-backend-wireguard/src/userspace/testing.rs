//! Any bytes as datagrams of a device with a session: for fuzzing.
