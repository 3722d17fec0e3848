//! Packets for tests, and the packet path as one function of bytes.

mod path;
#[cfg(test)]
mod sys;

use std::net::IpAddr;

use flannel_core::addr::Family;

pub use self::path::packet_path;
#[cfg(test)]
pub(crate) use self::sys::{allocations, send_raw};
use crate::packet::checksum::Sum;
use crate::packet::transport::{ICMP, ICMPV6, TCP, UDP};
use crate::packet::{Fragment, IpHeader, be16, put16, put32};

/// A packet to be made. Valid, unless told otherwise.
#[derive(Debug, Clone)]
pub struct Inner {
    source: IpAddr,
    destination: IpAddr,
    ports: (u16, u16),
    protocol: u8,
    ttl: u8,
    tos: u8,
    dont_fragment: bool,
    identification: u16,
    sequence: u32,
    flags: u8,
    payload: Vec<u8>,
}

impl Inner {
    /// A UDP packet from 10.1.1.2 to 10.1.2.2.
    pub fn udp(payload: &[u8]) -> Self {
        Self {
            source: [10, 1, 1, 2].into(),
            destination: [10, 1, 2, 2].into(),
            ports: (1000, 2000),
            protocol: UDP,
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            identification: 7,
            sequence: 1,
            flags: 0x10,
            payload: payload.to_vec(),
        }
    }

    /// A TCP packet with ACK.
    pub fn tcp(payload: &[u8]) -> Self {
        Self { protocol: TCP, ..Self::udp(payload) }
    }

    /// The same over IPv6, from `fd00:1::2` to `fd00:2::2`.
    pub fn v6(mut self) -> Self {
        self.source = "fd00:1::2".parse().expect("an address");
        self.destination = "fd00:2::2".parse().expect("an address");
        self
    }

    /// From here.
    pub fn from(mut self, source: impl Into<IpAddr>) -> Self {
        self.source = source.into();
        self
    }

    /// To there.
    pub fn to(mut self, destination: impl Into<IpAddr>) -> Self {
        self.destination = destination.into();
        self
    }

    /// With these ports.
    pub fn ports(mut self, source: u16, destination: u16) -> Self {
        self.ports = (source, destination);
        self
    }

    /// With this TTL.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With this type of service.
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// With this sequence number.
    pub fn sequence(mut self, sequence: u32) -> Self {
        self.sequence = sequence;
        self
    }

    /// With these TCP flags.
    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// With this identification, and DF or not.
    pub fn identification(mut self, identification: u16, dont_fragment: bool) -> Self {
        (self.identification, self.dont_fragment) = (identification, dont_fragment);
        self
    }

    /// The bytes.
    pub fn packet(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend(self.ports.0.to_be_bytes());
        transport.extend(self.ports.1.to_be_bytes());
        if self.protocol == TCP {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(99_u32.to_be_bytes());
            transport.extend([0x50, self.flags, 1, 0, 0, 0, 0, 0]);
        } else {
            transport.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            transport.extend([0, 0]);
        }
        transport.extend(&self.payload);
        let mut packet = self.header(transport.len());
        let at = packet.len();
        packet.extend(transport);
        let ip = IpHeader::parse(&packet).expect("made well");
        let len = packet.len() - at;
        let sum = ip.pseudo_sum(&packet, len).bytes(&packet[at..]).checksum();
        let field = if self.protocol == TCP { 16 } else { 6 };
        put16(&mut packet, at + field, if sum == 0 && self.protocol == UDP { 0xffff } else { sum });
        packet
    }

    fn header(&self, len: usize) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0; 20];
                (header[0], header[1], header[8], header[9]) = (0x45, self.tos, self.ttl, self.protocol);
                put16(&mut header, 2, (20 + len) as u16);
                put16(&mut header, 4, self.identification);
                put16(&mut header, 6, if self.dont_fragment { 0x4000 } else { 0 });
                put32(&mut header, 12, source.to_bits());
                put32(&mut header, 16, destination.to_bits());
                fix_header(&mut header);
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0; 8];
                header[0] = 0x60 | self.tos >> 4;
                header[1] = self.tos << 4;
                put16(&mut header, 4, len as u16);
                (header[6], header[7]) = (self.protocol, self.ttl);
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            _ => panic!("one family for both addresses"),
        }
    }
}

/// Puts the right checksum into an IPv4 header at the start of `packet`.
pub fn fix_header(packet: &mut [u8]) {
    put16(packet, 10, 0);
    let len = usize::from(packet[0] & 15) * 4;
    let sum = Sum::default().bytes(&packet[..len]).checksum();
    put16(packet, 10, sum);
}

/// Whether all checksums of a packet hold that can be checked.
pub fn intact(packet: &[u8]) -> bool {
    let Ok(ip) = IpHeader::parse(packet) else { return false };
    let transport = &packet[ip.header_len..ip.total_len];
    if !ip.is_intact(packet) {
        return false;
    }
    if ip.fragment != Fragment::Whole {
        return true;
    }
    let pseudo = ip.pseudo_sum(packet, transport.len());
    match (ip.protocol, ip.family()) {
        (TCP, _) | (ICMPV6, Family::V6) => pseudo.bytes(transport).is_intact(),
        (UDP, _) => be16(transport, 6) == 0 || pseudo.bytes(transport).is_intact(),
        (ICMP, Family::V4) => Sum::default().bytes(transport).is_intact(),
        _ => true,
    }
}
