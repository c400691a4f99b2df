"""Who is behind a network address, where peers are counted."""

import ipaddress

_SUBNET_BITS = 64


def origin_of(address: str) -> str:
    """The address itself in IPv4, its /64 in IPv6: one machine may use any address of that (RFC 4291 2.5.4).

    An IPv4-mapped address is that of IPv4. What is no address stands for itself.
    """
    try:
        there = ipaddress.ip_address(address)
    except ValueError:
        # What a proxy says of its client, or nothing where the web port is a Unix socket.
        return address
    if isinstance(there, ipaddress.IPv4Address):
        return str(there)
    if there.ipv4_mapped is not None:
        return str(there.ipv4_mapped)
    return str(ipaddress.IPv6Network((there.packed, _SUBNET_BITS), strict=False))
