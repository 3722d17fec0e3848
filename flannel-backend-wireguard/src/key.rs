//! WireGuard's keys: 32 bytes each, in standard base64 where people and files have them.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};

/// The public key of a device. A peer is known by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// The private key of a device. No output shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(pub [u8; 32]);

/// A key that two peers share besides their own ones (`PSK`). No output shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey(pub [u8; 32]);

/// Why a text is no key. It says nothing of the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It is not base64.
    #[error("is no standard base64")]
    Base64,
    /// It is base64 of another length.
    #[error("has {0} bytes; a WireGuard key has 32 (44 characters)")]
    Length(usize),
    /// It is all zeros, with which no node can agree on a secret.
    #[error("is all zeros, which is no key")]
    Zero,
}

fn decode(text: &str) -> Result<[u8; 32], KeyError> {
    let bytes = STANDARD.decode(text).map_err(|_| KeyError::Base64)?;
    let key = <[u8; 32]>::try_from(bytes).map_err(|bytes| KeyError::Length(bytes.len()))?;
    if key == [0; 32] { Err(KeyError::Zero) } else { Ok(key) }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    /// The key is clamped, as the kernel clamps every private key that is set, so that keys compare equal.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|key| Self(key).clamped())
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl PrivateKey {
    /// Draws a key from the kernel's source of randomness.
    pub fn generate() -> std::io::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self(key).clamped())
    }

    /// The same key as X25519 uses it (RFC 7748 section 5).
    #[must_use]
    pub fn clamped(mut self) -> Self {
        self.0[0] &= 0b1111_1000;
        self.0[31] = self.0[31] & 0b0111_1111 | 0b0100_0000;
        self
    }

    /// The public key that belongs to it.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519(self.0, X25519_BASEPOINT_BYTES))
    }

    /// The base64 text of the key, for the key file only.
    pub(crate) fn reveal(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl fmt::Display for PublicKey {
    /// In standard base64.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `wg genkey` and `wg pubkey`.
    const PRIVATE: &str = "UFwuI0yDgrqFzAGVtxqHaoJBpSn4tqqzqwQgcdCi9Hw=";

    #[test]
    fn a_public_key_is_that_of_its_private_key() {
        // RFC 7748 section 6.1: Alice's keys.
        let private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".parse::<PrivateKey>().unwrap();
        assert_eq!(private.public().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn keys_are_read_and_written_in_base64() {
        let public = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        assert_eq!(public.parse::<PublicKey>().unwrap().to_string(), public);
        for (text, error) in [
            ("", KeyError::Length(0)),
            ("AAAA", KeyError::Length(3)),
            ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo", KeyError::Base64),
            ("hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo=", KeyError::Base64),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", KeyError::Zero),
        ] {
            assert_eq!(text.parse::<PublicKey>(), Err(error), "{text}");
        }
    }

    #[test]
    fn drawn_keys_differ_and_are_as_the_kernel_keeps_them() {
        let [a, b] = [PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap()];
        assert_ne!(a, b);
        assert_eq!(a.clone().clamped(), a);
        assert_eq!(a.reveal().parse::<PrivateKey>(), Ok(a));
    }

    #[test]
    fn no_secret_is_shown() {
        let private = PRIVATE.parse::<PrivateKey>().unwrap();
        let shared = PRIVATE.parse::<PresharedKey>().unwrap();
        assert_eq!(format!("{private:?} {shared:?}"), "PrivateKey PresharedKey");
        let error = "not a key".parse::<PrivateKey>().unwrap_err().to_string();
        assert_eq!(error, "is no standard base64");
    }
}
