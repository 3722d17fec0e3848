//! Rules through iptables, in its legacy and its nft variant.
