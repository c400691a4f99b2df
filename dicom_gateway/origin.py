"""Who is behind a network address, where peers are counted."""

import ipaddress

_SUBNET_BITS = 64


def origin_of(address: str) -> str:
    """The address itself in IPv4, its /64 in IPv6: one machine may use any address of that (RFC 4291 2.5.4).

    A link-local address stands for itself, as does what is no address. An IPv4-mapped one is of IPv4.
    """
    try:
        there = ipaddress.ip_address(address)
    except ValueError:
        # What a proxy says of its client, or nothing where the web port is a Unix socket.
        return address
    if isinstance(there, ipaddress.IPv4Address) or there.is_link_local:
        return str(there)
    if there.ipv4_mapped is not None:
        return str(there.ipv4_mapped)
    return str(ipaddress.IPv6Network((there.packed, _SUBNET_BITS), strict=False))
