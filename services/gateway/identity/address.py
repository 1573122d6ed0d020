"""The address that a request comes from, through the proxies that are trusted to say so."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

from flask import Request

UNKNOWN = "unknown"
"""Where there is none, as over a Unix socket."""


def client_address(request: Request, trusted_proxies: int) -> str:
    """The client's IP address: the socket's, or where so many proxies stand in front, each of which appends who asked
    it to `X-Forwarded-For`, the one that the outermost of them saw. What stands further left anybody can write."""
    if trusted_proxies:
        seen = [part.strip() for value in request.headers.getlist("X-Forwarded-For") for part in value.split(",")]
        # Fewer than the proxies would have written: the request came by another way, and its header proves nothing.
        if len(seen) >= trusted_proxies and (address := _address(seen[-trusted_proxies])):
            return address
    return _address(request.remote_addr or "") or UNKNOWN


def neighbourhood(address: str) -> str:
    """What one customer of a provider has for itself: an IPv4 address, or the /64 network of an IPv6 address."""
    if ":" not in address:
        return address
    return str(ip_network(f"{address}/64", strict=False))


def _address(text: str) -> str | None:
    """The address in `text`, also as `1.2.3.4:5678` or `[::1]:5678`, as some proxies write it."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
