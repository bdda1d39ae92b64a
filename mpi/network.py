"""Which interface and address reach the other nodes: looked up, never assumed to be eth0. Standard library only."""

from __future__ import annotations

import fcntl
import ipaddress
import random
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi.errors import UserError

_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B
LOOPBACK = "127.0.0.1"
_SLOW_S = 2.0


class NetworkError(UserError):
    """A host that cannot be found or reached by name. One line: the host and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """How this node reaches the job's other nodes.

    interface: its name here. address: the address of the job's FIRST host, where rank 0 listens. subnet: the
    interface's network in CIDR notation (what Open MPI selects by). remote: hosts that are other machines. note: what
    of this is only assumed, one line.
    """

    interface: str = "lo"
    address: str = LOOPBACK
    subnet: str = "127.0.0.0/8"
    remote: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_local(self) -> bool:
        return not self.remote


def find(hosts: Sequence[str]) -> Network:
    """The network of a job on `hosts` (names). Raises NetworkError for an unknown or unreachable one."""
    addresses = {name: resolve(name) for name in hosts}
    remote = tuple(name for name in hosts if not is_own_address(addresses[name]))
    if not remote:
        return Network()
    own = source_address(addresses[remote[0]], remote[0])
    interface, subnet = interface_of(own)
    first = addresses[hosts[0]]
    return Network(interface=interface, address=own if hosts[0] not in remote else first, subnet=subnet, remote=remote)


def expected(hosts: Sequence[str]) -> Network:
    """As `find`, to show a job that is not started here: words stand for what cannot be found, and `note` says so."""
    unknown: list[str] = []
    remote: list[str] = []
    for name in hosts:
        began = time.monotonic()
        try:
            if not is_own_address(resolve(name)):
                remote.append(name)
        except NetworkError:
            unknown.append(name)
            if time.monotonic() - began > _SLOW_S:  # no name server answers: it would be as long for each of the others
                unknown += hosts[hosts.index(name) + 1 :]
                break
    if not unknown:
        try:
            return find(hosts)
        except NetworkError as error:
            unknown, why = remote, str(error).partition(":")[0]
    else:
        why = f"not known here: {', '.join(unknown[:6])}{', ...' if len(unknown) > 6 else ''}"
    note = f"{why}: INTERFACE and SUBNET stand for what is found at the start"
    others = tuple(name for name in hosts if name in remote or name in unknown)
    return Network(interface="INTERFACE", address=hosts[0], subnet="SUBNET", remote=others, note=note)


def resolve(name: str) -> str:
    """IPv4 address of `name`. Raises NetworkError where it has none."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise NetworkError(f"host '{name}' is not known here ({error}): add it to DNS or mend the hostfile") from None
    return str(found[0][4][0])


def is_own_address(address: str) -> bool:
    """True for an address of this machine: only those can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def source_address(target: str, name: str = "") -> str:
    """The own address that the kernel's route to `target` uses. Nothing is sent: UDP's connect only looks it up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError as error:
            where = f"'{name or target}' ({target})"
            raise NetworkError(f"no route to host {where}: {error.strerror}: check the cable or the VPN") from None
        return str(probe.getsockname()[0])


def interface_of(address: str) -> tuple[str, str]:
    """(name, subnet in CIDR) of the interface that has the IPv4 `address`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                found = socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24])
                mask = socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFNETMASK, request)[20:24])
            except OSError:  # an interface without an IPv4 address
                continue
            network = ipaddress.ip_network(f"{found}/{mask}", strict=False)
            # A second address of an interface is not in this list, its network is.
            if found == address or ipaddress.ip_address(address) in network:
                return name, str(network)
    raise NetworkError(f"no interface has the address {address}: name one with GLOO_SOCKET_IFNAME")


def bytes_of_this_host() -> tuple[int, int]:
    """(received, sent) bytes of all this host's interfaces but the loopback, headers included, since it was started.

    From the kernel's counters of this process's network namespace; what bypasses the kernel (RDMA) is not in them.
    """
    received = sent = 0
    for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]:
        name, _, values = line.partition(":")
        if name.strip() != "lo":
            fields = values.split()
            received, sent = received + int(fields[0]), sent + int(fields[8])
    return received, sent


def free_port(address: str = "") -> int:
    """A TCP port that is free now on `address` (default: every own address).

    Below the kernel's ephemeral range (32768 up), so that no outgoing connection takes it before rank 0 listens. If
    `address` is another machine's, the port is only likely to be free.
    """
    for port in random.SystemRandom().sample(range(20000, 32000), 200):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address if address and is_own_address(address) else "", port))
            except OSError:
                continue
        return port
    raise NetworkError("no free TCP port between 20000 and 32000: end the processes that hold them")
