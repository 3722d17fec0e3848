use proptest::prelude::*;

use super::*;

const LINK: LinkIndex = LinkIndex(7);

fn read(messages: &[Vec<u8>]) -> Result<DeviceState, String> {
    let mut reader = Reader::default();
    messages.iter().try_for_each(|message| reader.add(message))?;
    Ok(reader.finish())
}

fn peer(n: u8) -> PeerState {
    PeerState {
        preshared_key: n.is_multiple_of(2).then_some(PresharedKey([9; 32])),
        endpoint: Some(if n.is_multiple_of(3) {
            "[2001:db8::7]:51821".parse().unwrap()
        } else {
            format!("192.0.2.{n}:51820").parse().unwrap()
        }),
        keepalive: n.into(),
        allowed_ips: [
            format!("10.5.{n}.0/24").parse().unwrap(),
            format!("fd00:5:0:{n}::/64").parse().unwrap(),
        ]
        .into(),
        last_handshake: UNIX_EPOCH.checked_add(Duration::new(1_700_000_000, 5)),
        rx_bytes: 1 << 40,
        tx_bytes: n.into(),
    }
}

/// A dump in parts as the kernel sends it: the device first, and a peer whose allowed addresses go on in the next
/// message.
fn dump(peers: &[(PublicKey, PeerState)], per_message: usize) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    for (n, part) in peers.chunks(per_message).enumerate() {
        let mut attrs = AttrWriter::default();
        if n == 0 {
            attrs.put(device::IFINDEX, &LINK.0.to_ne_bytes());
            attrs.put(2, b"flannel-wg\0");
            attrs.put(device::PRIVATE_KEY, &[8; 32]);
            attrs.put(device::LISTEN_PORT, &51820_u16.to_ne_bytes());
            attrs.put(device::FWMARK, &0_u32.to_ne_bytes());
        }
        attrs.nest(device::PEERS, |list| {
            for (key, state) in part {
                list.nest(0, |item| item.append(&mut dumped(key, state)));
            }
        });
        messages.push(attrs.bytes().to_vec());
    }
    messages
}

#[test]
fn a_dump_that_spans_messages_is_one_device() {
    let all: Vec<_> = (1..=50).map(|n| (PublicKey([n; 32]), peer(n))).collect();
    let want = DeviceState {
        private_key: Some(PrivateKey([8; 32])),
        listen_port: 51820,
        fwmark: 0,
        peers: all.iter().cloned().collect(),
    };
    for per_message in [1, 7, 50] {
        assert_eq!(read(&dump(&all, per_message)).unwrap(), want);
    }
    // The last peer's allowed addresses go on in a message of their own, which has nothing else of it.
    let mut messages = dump(&all, 50);
    let mut more = AttrWriter::default();
    more.nest(device::PEERS, |list| {
        list.nest(0, |item| {
            item.put(peer::PUBLIC_KEY, &[50; 32]);
            allowed_ips(item, &["10.6.0.0/24".parse().unwrap()]);
        });
    });
    messages.push(more.bytes().to_vec());
    let mut want = want;
    want.peers.get_mut(&PublicKey([50; 32])).unwrap().allowed_ips.insert("10.6.0.0/24".parse().unwrap());
    assert_eq!(read(&messages).unwrap(), want);
}

/// The bytes that `wg set` sends, by strace, but for what is set besides.
#[test]
fn a_peer_is_sent_in_the_kernels_form() {
    let change = PeerChange {
        endpoint: Some("192.0.2.9:51820".parse().unwrap()),
        allowed_ips: Some(["10.5.9.0/24".parse().unwrap()].into()),
        ..PeerChange::default()
    };
    let messages = set(LINK, &[Change::Peer(PublicKey([1; 32]), change)]);
    let mut want = Vec::new();
    // ifindex
    want.extend([8, 0, 1, 0, 7, 0, 0, 0]);
    // peers, and one of them
    want.extend([104, 0, 8, 128, 100, 0, 0, 128]);
    want.extend([36, 0, 1, 0]);
    want.extend([1; 32]);
    want.extend([8, 0, 3, 0, 2, 0, 0, 0]);
    want.extend([20, 0, 4, 0, 2, 0, 0xca, 0x6c, 192, 0, 2, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
    want.extend([32, 0, 9, 128, 28, 0, 0, 128]);
    want.extend([6, 0, 1, 0, 2, 0, 0, 0, 8, 0, 2, 0, 10, 5, 9, 0, 5, 0, 3, 0, 24, 0, 0, 0]);
    if cfg!(target_endian = "little") {
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].bytes(), want);
    }
}

/// Reads what would be sent, as the kernel does.
fn sent(messages: &[AttrWriter]) -> DeviceState {
    read(&messages.iter().map(|message| message.bytes().to_vec()).collect::<Vec<_>>()).unwrap()
}

#[test]
fn a_thousand_peers_are_cut_into_messages_that_fit() {
    let change = |n: u16| PeerChange {
        preshared_key: Some(Some(PresharedKey([9; 32]))),
        endpoint: Some(format!("192.0.2.9:{n}").parse().unwrap()),
        keepalive: Some(25),
        allowed_ips: Some([format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap()].into()),
    };
    let key = |n: u16| PublicKey(std::array::from_fn(|at| n.to_ne_bytes()[at % 2]));
    let mut changes = vec![Change::PrivateKey(PrivateKey([8; 32])), Change::ListenPort(51820)];
    changes.extend((1..=1000).map(|n| Change::Peer(key(n), change(n))));
    let messages = set(LINK, &changes);
    assert!((3..10).contains(&messages.len()), "{}", messages.len());
    assert!(messages.iter().all(|message| message.len() <= MESSAGE + 64));
    for message in &messages {
        let of = |number| attrs_of(message.bytes()).any(|(found, _)| found == number);
        assert!(of(device::IFINDEX), "each names its device");
        assert!(!of(5), "no flags of the device: they would replace all peers");
    }
    let state = sent(&messages);
    assert_eq!((state.private_key, state.listen_port), (Some(PrivateKey([8; 32])), 51820));
    assert_eq!(state.peers.len(), 1000);
    assert!((1..=1000).all(|n| {
        let peer = &state.peers[&key(n)];
        Some(&peer.allowed_ips) == change(n).allowed_ips.as_ref() && peer.endpoint == change(n).endpoint
    }));
}

#[test]
fn a_peer_with_very_many_addresses_takes_several_items_and_replaces_once() {
    let all: BTreeSet<IpNetwork> =
        (0..5000_u16).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap()).collect();
    let change = PeerChange { allowed_ips: Some(all.clone()), ..PeerChange::default() };
    let messages = set(LINK, &[Change::Peer(PublicKey([1; 32]), change)]);
    assert!(messages.len() > 1);
    assert_eq!(sent(&messages).peers[&PublicKey([1; 32])].allowed_ips, all);
    let flags = |message: &AttrWriter| {
        let peers =
            attrs_of(message.bytes()).find(|(number, _)| *number == device::PEERS).unwrap().1.to_vec();
        attrs_of(&peers).filter(|(_, item)| attrs_of(item).any(|(number, _)| number == peer::FLAGS)).count()
    };
    assert_eq!(messages.iter().map(flags).sum::<usize>(), 1, "later items add");
}

#[test]
fn what_concerns_the_device_keeps_its_place_among_peers() {
    let changes = [
        Change::RemovePeer(PublicKey([1; 32])),
        Change::PrivateKey(PrivateKey([8; 32])),
        Change::RemovePeer(PublicKey([2; 32])),
    ];
    assert_eq!(set(LINK, &changes).len(), 2, "the kernel sets the key of a message before its peers");
    assert!(set(LINK, &[]).is_empty());
}

#[test]
fn wrong_lengths_are_named() {
    let whole = dump(&[(PublicKey([1; 32]), peer(1))], 1).remove(0);
    for (number, value, what) in [
        (device::PRIVATE_KEY, vec![1; 31], "private key of 31 bytes"),
        (device::LISTEN_PORT, vec![1; 4], "port of 4 bytes"),
    ] {
        let mut attrs = AttrWriter::default();
        attrs.put(number, &value);
        let error = read(&[whole.clone(), attrs.bytes().to_vec()]).unwrap_err();
        assert!(error.contains(what), "{error}");
    }
    let mut attrs = AttrWriter::default();
    attrs.nest(device::PEERS, |list| list.nest(0, |item| item.put(peer::KEEPALIVE, &[0, 0])));
    assert!(read(&[attrs.bytes().to_vec()]).unwrap_err().contains("without a public key"));
}

proptest! {
    #[test]
    fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..400_usize, at in 0..400_usize, with in any::<u8>()) {
        let _ = read(&[bytes.clone()]);
        // Near a real message.
        let mut whole = dump(&[(PublicKey([1; 32]), peer(1)), (PublicKey([2; 32]), peer(3))], 2).remove(0);
        if let Some(byte) = whole.get_mut(at) {
            *byte = with;
        }
        whole.truncate(whole.len().saturating_sub(cut % 200));
        let _ = read(&[whole.clone()]);
        bytes.extend(whole);
        let _ = read(&[bytes]);
    }
}
