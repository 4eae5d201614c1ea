"""Under which names and for whose pages a server on this machine answers. The gate of the page and `python -m workbench
serve` ask here.

A foreign name that is pointed at this machine (DNS rebinding) makes a foreign page the server's own in the eyes of a
browser: only the Host header tells. A page of another site tells its Origin.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class Door:
    """What the gate lets in.

    `hosts`: names beside loopback's that are this server's, `*.name` for all below one. `proxies`: addresses or
    networks whose `X-Forwarded-*` counts. `root_path`: the prefix that a proxy may leave on.
    """

    hosts: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    root_path: str = ""
    networks: list = field(init=False)

    def __post_init__(self):
        """Raises ValueError for a proxy that is no address or network."""
        self.hosts = tuple(host.lower().rstrip(".") for host in self.hosts)
        self.networks = [ipaddress.ip_network(proxy, strict=False) for proxy in self.proxies]

    def knows(self, name: str, reached: str) -> bool:
        """Whether `name` is this server's; `reached`: the address at which the connection came in, which may be any in
        a bind of all."""
        if name in LOOPBACK or name in self.hosts or same_address(name, reached):
            return True
        return any(host.startswith("*.") and name.endswith(host[1:]) for host in self.hosts)

    def trusts(self, address: str) -> bool:
        """Whether `address` is one of the named proxies."""
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(peer in network for network in self.networks)


def host_name(host: str) -> str:
    """The name in a Host header without its port, in lower case; empty for what is none."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/@\s]+?))\.?(?::\d{1,5})?", host)
    return (match[1] or match[2]).lower() if match else ""


def same_address(name: str, reached: str) -> bool:
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(reached)
    except ValueError:
        return False


def same_origin(origin: str, scheme: str, host: str, *, by_browser: bool) -> bool:
    """Whether `origin` is this server as it was addressed. `by_browser`: the browser says so, too; then a scheme that a
    proxy changed is no reason against it."""
    try:
        given, mine = urlsplit(origin), urlsplit(f"{scheme}://{host}")
        ports = [part.port or {"http": 80, "https": 443}.get(part.scheme) for part in (given, mine)]
        same_name = given.hostname is not None and given.hostname == mine.hostname
    except ValueError:
        return False
    if given.scheme not in ("http", "https"):
        return False
    return same_name and (ports[0] == ports[1] if given.scheme == mine.scheme else by_browser)
