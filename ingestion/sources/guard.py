"""Whom Footnote may talk to when somebody else chose the address.

A name is resolved once, every address that it has is judged, and the connection goes to exactly
one of those; so it does not matter what the name means a moment later, or how an address is
written. Redirects come through here again, hop by hop.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from ssl import SSLContext
from typing import cast

import httpcore
import httpx

from app.urls import Refused

ADDRESSES_TRIED = 4

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""The addresses of a name, for a port; raises OSError."""


# --- addresses ------------------------------------------------------------------------------------

_CLOSED_IPV4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # carriers' NAT, and the metadata of some clouds
            "127.0.0.0/8",
            "168.63.129.16/32",  # what a virtual machine's host answers at in one cloud
            "169.254.0.0/16",  # link-local, and the metadata of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_OPEN_IPV6 = IPv6Network("2000::/3")
"""All that was ever given out to be reached from everywhere."""
_CLOSED_IPV6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocols' own, Teredo among them
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: a way to any IPv4 address
            "3fff::/20",  # documentation
        ),
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")


def is_open(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Whether the address is everybody's to reach, or in a network that the operator allowed."""
    address = _meant(address)
    if any(address in network for network in allowed if network.version == address.version):
        return True
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _CLOSED_IPV4)
    return (
        address.scope_id is None
        and address in _OPEN_IPV6
        and not any(address in network for network in _CLOSED_IPV6)
    )


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where a system would connect to that."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


# --- connections ----------------------------------------------------------------------------------


async def resolve_host(host: str, port: int) -> Sequence[Address]:
    """What the system's resolver knows of the name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(address[0]) for *_, address in found]


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the address that was judged; the name goes on being used for TLS and `Host`."""

    def __init__(self, allowed: Sequence[Network], resolve: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._network = cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises Refused, or httpcore's ConnectError and ConnectTimeout."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._judged(host, port)
                return await self._first_of(
                    addresses[:ADDRESSES_TRIED], port, timeout, local_address, socket_options
                )
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise Refused("sockets of this machine are not read")

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)

    async def _judged(self, host: str, port: int) -> Sequence[Address]:
        """All addresses of the name; one that is closed closes the name."""
        try:
            addresses = list(dict.fromkeys(await self._resolve(host, port)))
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the name {host} is not known") from error
        if not addresses:
            raise httpcore.ConnectError(f"the name {host} has no address")
        if not all(is_open(address, self._allowed) for address in addresses):
            raise Refused(
                f"{host} is an address of a private or special network"
                " (FOOTNOTE_SOURCE_ALLOW_NETWORKS can allow it)"
            )
        return addresses

    async def _first_of(
        self,
        addresses: Sequence[Address],
        port: int,
        timeout: float | None,
        local_address: str | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.AsyncNetworkStream:
        last: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in addresses:
            try:
                return await self._network.connect_tcp(
                    str(address),
                    port,
                    # One that does not answer leaves time for the others.
                    timeout=timeout / len(addresses) if timeout else None,
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise last or httpcore.ConnectError("there is no address")


class GuardedTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 over guarded connections, never through a proxy of the environment.

    Raises Refused besides what httpx's own transport raises.
    """

    def __init__(
        self,
        allowed: Sequence[Network] = (),
        *,
        resolve: Resolve = resolve_host,
        tls: SSLContext | None = None,
        connections_count: int = 16,
    ) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or open_tls(),
            max_connections=connections_count,
            keepalive_expiry=30,
            network_backend=GuardedBackend(allowed, resolve),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        asked = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        reply = await self._pool.handle_async_request(asked)
        return httpx.Response(status_code=reply.status, headers=reply.headers, stream=_Body(reply))

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, reply: httpcore.Response) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._reply.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._reply.aclose()


def open_tls() -> SSLContext:
    """Trusts what browsers do, and what this machine's administrator does."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context
