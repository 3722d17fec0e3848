//! The protocol's core, which is boringtun's `noise`: handshakes, sessions, replay windows, cookies. The only file that
//! names that library.
//!
//! The core does no I/O and knows no addresses, endpoints or allowed addresses. It reads a clock of its own, but only in
//! [`Tunnel::tick`] and where a handshake is written, so all else that it does counts from the last tick.

use std::net::IpAddr;
use std::sync::Arc;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use flannel_backend_udp::datapath::DropReason;

use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// The longest message of a handshake, in bytes: the initiation (paper section 5.4.2).
pub(crate) const LONGEST_HANDSHAKE: usize = 148;
/// Bytes around a packet in a data message: type, receiver, counter and tag (paper section 5.4.6).
pub(crate) const DATA_OVERHEAD: usize = 32;
/// Bytes of a cookie reply.
const COOKIE_REPLY: usize = 64;

/// Handshake messages a second that are answered without a proof of the sender's address. Each costs about a fifth of a
/// millisecond. A node with 1,000 peers that starts again may get an answer from all of them within one second.
pub(crate) const HANDSHAKES_A_SECOND: u64 = 1000;

/// A device's own keys, and the doorkeeper of its handshakes.
pub(crate) struct Identity {
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    gate: RateLimiter,
    /// For tunnels, which are given only what has passed the gate.
    open_gate: Arc<RateLimiter>,
}

/// A handshake message that passed the gate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// An initiation by the owner of this key, which is still to be proved.
    Initiation(PublicKey),
    /// A response or cookie for the handshake that we sent under this index.
    Answer(u32),
}

/// A handshake message that did not.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There are too many; the sender is asked to come again with the cookie of this many bytes.
    Cookie(usize),
    /// It is invalid.
    Invalid,
}

impl Identity {
    pub(crate) fn new(key: &PrivateKey) -> Self {
        Self::with_limit(key, HANDSHAKES_A_SECOND)
    }

    /// The same with another limit for handshakes a second.
    pub(crate) fn with_limit(key: &PrivateKey, handshakes: u64) -> Self {
        let secret = x25519::StaticSecret::from(key.0);
        let public = x25519::PublicKey::from(&secret);
        let gate = RateLimiter::new(&public, handshakes);
        let open_gate = Arc::new(RateLimiter::new(&public, u64::MAX));
        Self { secret, public, gate, open_gate }
    }

    pub(crate) fn public(&self) -> PublicKey {
        PublicKey(*self.public.as_bytes())
    }

    /// Lets handshakes pass again after a second. Calling it more often changes nothing.
    pub(crate) fn replenish(&self) {
        self.gate.reset_count();
    }

    /// Checks a handshake message before anything expensive is done with it.
    pub(crate) fn admit(
        &self,
        from: IpAddr,
        message: &[u8],
        reply: &mut [u8; LONGEST_HANDSHAKE],
    ) -> Result<Admitted, Refused> {
        let mut cookie = [0; COOKIE_REPLY];
        match self.gate.verify_packet(Some(from), message, &mut cookie) {
            Ok(Packet::HandshakeInit(initiation)) => {
                let half = parse_handshake_anon(&self.secret, &self.public, &initiation);
                half.map(|half| Admitted::Initiation(PublicKey(half.peer_static_public)))
                    .map_err(|_| Refused::Invalid)
            }
            Ok(Packet::HandshakeResponse(response)) => Ok(Admitted::Answer(response.receiver_idx)),
            Ok(Packet::PacketCookieReply(cookie)) => Ok(Admitted::Answer(cookie.receiver_idx)),
            Ok(Packet::PacketData(_)) => Err(Refused::Invalid),
            Err(TunnResult::WriteToNetwork(cookie)) => {
                reply[..cookie.len()].copy_from_slice(cookie);
                Err(Refused::Cookie(cookie.len()))
            }
            Err(_) => Err(Refused::Invalid),
        }
    }
}

/// What came out of a data message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// A packet of this many bytes.
    Packet(usize),
    /// Nothing: it only shows that the peer is there.
    Keepalive,
}

/// What the passing of time asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// A message of this many bytes is to be sent.
    Send(usize),
    /// Sessions, keys and waiting packets were dropped.
    Expired,
}

/// One peer's handshakes and sessions.
pub(crate) struct Tunnel(Tunn);

impl Tunnel {
    /// `index` has 24 bits; the upper 24 of a session's 32-bit index are the same.
    pub(crate) fn new(
        identity: &Identity,
        peer: PublicKey,
        preshared_key: Option<&PresharedKey>,
        index: u32,
    ) -> Self {
        let secret = identity.secret.clone();
        let (peer, shared) = (x25519::PublicKey::from(peer.0), preshared_key.map(|key| key.0));
        // Persistent keepalives are ours, so that changing them doesn't end sessions.
        let gate = Some(Arc::clone(&identity.open_gate));
        Self(Tunn::new(secret, peer, shared, None, index, gate))
    }

    /// Whether packets can be sent at once.
    pub(crate) fn has_session(&self) -> bool {
        self.0.time_since_last_handshake().is_some()
    }

    /// Seals a packet. Without a session it is kept for the next one, and what is written is the beginning of a handshake;
    /// nothing, if that has begun already.
    pub(crate) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        written(&self.0.encapsulate(packet, out))
    }

    /// Opens a data message.
    pub(crate) fn open(&mut self, message: &[u8], out: &mut [u8]) -> Result<Data, DropReason> {
        match self.0.decapsulate(None, message, out) {
            TunnResult::WriteToTunnelV4(packet, _) => Ok(Data::Packet(packet.len())),
            TunnResult::WriteToTunnelV6(packet, _) => Ok(Data::Packet(packet.len())),
            TunnResult::Done => Ok(Data::Keepalive),
            TunnResult::WriteToNetwork(_) => Err(DropReason::BadMessage),
            TunnResult::Err(error) => Err(why(&error)),
        }
    }

    /// Reads a handshake message that passed the gate, and writes the answer, if there is one.
    pub(crate) fn handshake(&mut self, message: &[u8], out: &mut [u8]) -> Result<Option<usize>, DropReason> {
        match self.0.decapsulate(None, message, out) {
            TunnResult::Err(_) => Err(DropReason::BadHandshake),
            result => Ok(written(&result)),
        }
    }

    /// Seals the next packet that waits for a session. Only once there is one.
    pub(crate) fn next_waiting(&mut self, out: &mut [u8]) -> Option<usize> {
        written(&self.0.decapsulate(None, &[], out))
    }

    /// Begins a handshake, unless one has begun.
    pub(crate) fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        written(&self.0.format_handshake_initiation(out, false))
    }

    /// Brings the core's clock up to date.
    pub(crate) fn tick(&mut self, out: &mut [u8]) -> Due {
        // The core logs what is ordinary as errors, and not of whom: that a session ended, that an answer is late. Who asks
        // for the device's state sees both.
        let silent = tracing::Dispatch::none();
        match tracing::dispatcher::with_default(&silent, || self.0.update_timers(out)) {
            TunnResult::WriteToNetwork(message) => Due::Send(message.len()),
            TunnResult::Err(WireGuardError::ConnectionExpired) => Due::Expired,
            _ => Due::Nothing,
        }
    }
}

fn written(result: &TunnResult<'_>) -> Option<usize> {
    match result {
        TunnResult::WriteToNetwork(message) => Some(message.len()),
        _ => None,
    }
}

fn why(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => DropReason::UnknownSession,
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => DropReason::Replayed,
        WireGuardError::InvalidAeadTag => DropReason::NotAuthentic,
        // It was authentic, but what it contains isn't a packet.
        WireGuardError::InvalidPacket => DropReason::NotIp,
        _ => DropReason::BadMessage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(number: u8, limit: u64) -> Identity {
        Identity::with_limit(&PrivateKey([number; 32]), limit)
    }

    /// The initiator's next attempt carries the cookie, and passes however many others come.
    #[test]
    fn who_proves_the_address_passes_the_gate() {
        let (a, b) = (identity(1, 10), identity(2, 0));
        let mut tunnel = Tunnel::new(&a, b.public(), None, 7);
        let from: IpAddr = [192, 0, 2, 1].into();
        let mut out = [0; LONGEST_HANDSHAKE];
        let mut reply = [0; LONGEST_HANDSHAKE];
        let len = tunnel.initiate(&mut out).unwrap();
        assert_eq!(b.admit(from, &out[..len], &mut reply), Err(Refused::Cookie(64)));
        assert_eq!(tunnel.handshake(&reply[..64], &mut [0; LONGEST_HANDSHAKE]), Ok(None));
        let again = written(&tunnel.0.format_handshake_initiation(&mut out, true)).unwrap();
        assert_eq!(b.admit(from, &out[..again], &mut reply), Ok(Admitted::Initiation(a.public())));
        let elsewhere: IpAddr = [192, 0, 2, 9].into();
        assert_eq!(b.admit(elsewhere, &out[..again], &mut reply), Err(Refused::Cookie(64)));
        out[100] ^= 1;
        assert_eq!(b.admit(from, &out[..again], &mut reply), Err(Refused::Invalid));
    }
}
