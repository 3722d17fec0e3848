//! Sends the packets of a visit.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::Prober;
use crate::addr::Subnet;
use crate::backend::Answers;
use crate::probe::CLOSED_PORT;
use crate::probe::kind::Kind;
use crate::probe::packet::{self, Token};
use crate::probe::sockets::{Question, Route};

impl Prober {
    /// Sends one packet. Returns whether it did: some make no sense for some peers.
    pub(super) fn send(
        &mut self,
        id: u32,
        kind: Kind,
        number: u32,
        patience: Duration,
    ) -> std::io::Result<bool> {
        let target = &self.targets[&id];
        let Some(sockets) = self.sockets.get(target.family) else { return Ok(false) };
        let token = Token { secret: self.secret, number };
        let overlay = match self.probing.answers {
            Answers::Base => {
                let own = self.own.subnet(target.family).map(Subnet::base);
                Route { source: own, hops: None }
            }
            Answers::Bridge => Route { source: None, hops: Some(1) },
        };
        let closed = |addr| SocketAddr::new(addr, CLOSED_PORT);
        let bytes = token.to_bytes();
        match kind {
            Kind::Small => sockets.send_echo(target.overlay, overlay, token, 0)?,
            Kind::Full => sockets.send_echo(target.overlay, overlay, token, self.overlay_mtu.0)?,
            Kind::AtLargest(size) | Kind::Rung(size) => {
                sockets.send_echo(target.overlay, overlay, token, size)?;
            }
            Kind::Offloaded => sockets.send_udp(closed(target.overlay), overlay, &bytes, false)?,
            Kind::Software => sockets.send_udp(closed(target.overlay), overlay, &bytes, true)?,
            Kind::UnderEcho => sockets.send_echo(target.underlay, Route::default(), token, 0)?,
            Kind::UnderUdp => sockets.send_udp(closed(target.underlay), Route::default(), &bytes, true)?,
            Kind::Closed => {
                let Some(tunnel) = &self.probing.tunnel else { return Ok(false) };
                let at = SocketAddr::new(target.underlay, tunnel.port(target.family));
                sockets.send_udp(at, Route::default(), &bytes, true)?;
            }
            Kind::Sideways | Kind::AnyMac => {
                let to = target.vtep.filter(|_| kind == Kind::Sideways);
                if kind == Kind::AnyMac && target.vtep.is_none() {
                    // A tunnel without MACs.
                    return Ok(false);
                }
                let source = sockets.source_to(target.underlay)?;
                let packet = packet::echo_packet(source, target.overlay, sockets.echo_id(), token);
                let tunnel = self.probing.tunnel.as_ref();
                let wrapped = tunnel.zip(packet).and_then(|(it, packet)| it.wrap(target.family, to, &packet));
                let Some((wrapped, tunnel)) = wrapped.zip(tunnel) else { return Ok(false) };
                let at = SocketAddr::new(target.underlay, tunnel.port(target.family));
                sockets.send_udp(at, Route::default(), &wrapped, true)?;
            }
            Kind::Tcp => {
                let source = overlay.source;
                self.connect(source, closed(target.overlay), number, patience)?;
            }
            Kind::Solicit => {
                let Some(link) = target.link else { return Ok(false) };
                let (source, asked) = (sockets.source_to(target.underlay)?, target.underlay);
                let question = self.netns.run(|| Question::ask(link, source, asked))??;
                self.connecting
                    .spawn(async move { timeout(patience, question.answered()).await.ok().map(|()| number) });
            }
            Kind::UnderTcp => self.connect(None, closed(target.underlay), number, patience)?,
        }
        Ok(true)
    }

    /// Tries a TCP connection. One that is refused is an answer.
    pub(super) fn connect(
        &mut self,
        source: Option<IpAddr>,
        dst: SocketAddr,
        number: u32,
        patience: Duration,
    ) -> std::io::Result<()> {
        let new = if dst.is_ipv4() { TcpSocket::new_v4 } else { TcpSocket::new_v6 };
        let socket = self.netns.run(new)??;
        if let Some(source) = source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        self.connecting.spawn(async move {
            let is_answer = match timeout(patience, socket.connect(dst)).await {
                Ok(Ok(_)) => true,
                Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
                Err(_) => false,
            };
            is_answer.then_some(number)
        });
        Ok(())
    }
}
