#!/usr/bin/env python3
"""Records what the running kernel says of rules: `record.py RULES OUT`, in a network namespace of its own (`unshare -n`).

RULES is what `nft -f` reads. OUT gets the answers to dumps of all rules of the families ip, ip6 and inet, and of the elements of
the sets in them, one after the other.
"""

import socket
import struct
import subprocess
import sys

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
GETRULE, GETSET, GETSETELEM = 7, 10, 13
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
FAMILIES = (2, 10, 1)


def attribute(kind, text):
    value = text.encode() + b"\0"
    return struct.pack("HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def dump(netlink, family, kind, attributes=b""):
    """The messages of a dump."""
    body = struct.pack("BBH", family, 0, 0) + attributes
    kind |= NFNL_SUBSYS_NFTABLES << 8
    netlink.send(struct.pack("IHHII", 16 + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
    messages = []
    while True:
        data = netlink.recv(1 << 16)
        while data:
            length, answer = struct.unpack_from("IH", data)
            if answer == NLMSG_ERROR:
                raise OSError(-struct.unpack_from("i", data, 16)[0], "refused")
            if answer == NLMSG_DONE:
                return messages
            messages.append(data[:length])
            data = data[(length + 3) & ~3:]


def names(message):
    """The first two names in a message about a set: its table's and its own."""
    at, found = 20, {}
    while at < len(message):
        length, kind = struct.unpack_from("HH", message, at)
        found[kind & 0x3FFF] = message[at + 4:at + length]
        at += (length + 3) & ~3
    return [found[kind].rstrip(b"\0").decode() for kind in (1, 2)]


def main(rules, out):
    subprocess.run(["nft", "-f", rules], check=True)
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    netlink.bind((0, 0))
    recorded = []
    for family in FAMILIES:
        recorded += dump(netlink, family, GETRULE)
        for message in dump(netlink, family, GETSET):
            table, name = names(message)
            recorded += dump(netlink, family, GETSETELEM, attribute(1, table) + attribute(2, name))
    with open(out, "wb") as file:
        file.write(b"".join(recorded))


if __name__ == "__main__":
    main(*sys.argv[1:])
