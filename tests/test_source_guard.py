"""The web sources against servers, names and addresses that mean harm."""

import asyncio
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.config import Settings
from app.urls import Refused, checked_url
from ingestion.sources.base import ItemUnreadable
from ingestion.sources.fetching import REDIRECTS_MAX, WebClient
from ingestion.sources.guard import Address, GuardedBackend, is_open
from tests.doubles.web_server import Answer, Request, WebServer, serving_web

MAX_BYTES = 1024 * 1024


def reached(*allowed: str, **values: object) -> Settings:
    """Settings under which these networks may be reached, and nobody waits."""
    return Settings.model_validate(
        {"source_allow_networks": allowed, "source_pause_seconds": 0, **values}
    )


LOCAL = reached("127.0.0.1/32")


@pytest.fixture
async def web() -> AsyncIterator[WebServer]:
    async with serving_web({"/": Answer(b"secret")}) as server:
        yield server


async def fetch(url: str, settings: Settings = LOCAL, **options: object) -> httpx.URL | bytes:
    """What stands at the URL; raises Refused or ItemUnreadable."""
    async with WebClient(settings, **options) as client:  # type: ignore[arg-type]
        return (await client.get(checked_url(url), max_bytes=MAX_BYTES)).content


class Names:
    """A resolver whose answers change from one question to the next; the last one stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = [list(map(ip_address, answer)) for answer in answers]
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append(host)
        return self._answers[min(len(self.asked), len(self._answers)) - 1]


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104 - that nobody may connect to it is the point
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1",
        "100::1",
        "2001::1",
        "2001:0:7f00:1::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "2002:808:808::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%lo",
        "fec0::1",
        "ff02::1",
    ],
)
def test_an_address_of_a_special_network_is_closed(address: str) -> None:
    assert not is_open(ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "9.255.255.255", "172.32.0.1", "2606:4700::1111", "64:ff9b::101:101"]
)
def test_an_address_of_everybody_is_open(address: str) -> None:
    assert is_open(ip_address(address))


def test_the_operator_opens_a_network_in_every_form_of_its_addresses() -> None:
    allowed = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1"):
        assert is_open(ip_address(address), allowed)
    for address in ("127.0.0.1", "192.168.0.1", "::1"):
        assert not is_open(ip_address(address), allowed)


# --- URLs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/a",
        "gopher://example.com/",
        "unix:///var/run/docker.sock",
        "//example.com/a",
        "example.com/a",
        "http://",
        "http:///etc/passwd",
        "http://user@example.com/",
        "http://user:secret@example.com/",
        "http://example.com@127.0.0.1/",
        "http://example.com\\@127.0.0.1/",
        "http://exa mple.com/",
        "http://example.com:99999/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.0.0.01/",
        "http://127.0.0.1./",
        "http://1.2.3.4.5/",
        "http://①②⑦.0.0.1/",
        "http://example.com/" + "a" * 2048,
        "http://example.com/\x00",
    ],
)
def test_a_url_that_no_document_is_at_is_refused(url: str) -> None:
    with pytest.raises(Refused):
        checked_url(url)


def test_a_url_is_known_by_its_usual_form() -> None:
    assert str(checked_url("HTTPS://Example.COM:443/a b?x=1#part")) == (
        "https://example.com/a%20b?x=1"
    )


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.2",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "0.0.0.0",  # noqa: S104 - that nobody may connect to it is the point
        "127。0。0。1",
    ],
)
async def test_this_machine_is_closed_whatever_it_is_called(web: WebServer, host: str) -> None:
    # Some resolvers do not know `localhost.` at all.
    with pytest.raises(ItemUnreadable, match="private or special network|is not known"):
        await fetch(web.url("/", host), reached())
    assert web.connections_count == 0


async def test_odd_forms_are_closed_even_where_the_resolver_knows_them() -> None:
    """The check of the URL is not what keeps them out."""
    from ingestion.sources.guard import resolve_host  # noqa: PLC0415 - beside what it shows

    for host in ("0x7f.1", "2130706433", "0177.0.0.1", "127.1"):
        with pytest.raises(Refused):
            await GuardedBackend([], resolve_host).connect_tcp(host, 80)


async def test_a_socket_of_this_machine_is_closed(tmp_path: Path) -> None:
    with pytest.raises(Refused):
        await GuardedBackend([], Names()).connect_unix_socket(str(tmp_path / "socket"))


# --- names ----------------------------------------------------------------------------------------


async def test_a_name_with_one_private_address_is_closed(web: WebServer) -> None:
    names = Names(["1.1.1.1", "127.0.0.2"])
    with pytest.raises(ItemUnreadable, match="private or special network"):
        await fetch(web.url("/", "docs.example"), resolve=names)
    assert names.asked == ["docs.example"]


async def test_a_name_is_looked_up_once_per_connection_and_never_trusted_again() -> None:
    """The name moves to a closed address between two connections, as rebinding does."""
    closing = {"/": Answer(b"page", headers={"Connection": "close"})}
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    async with (
        serving_web(closing) as outside,
        serving_web({"/": Answer(b"secret")}, host="127.0.0.2", port=outside.port) as inside,
        WebClient(LOCAL, resolve=names) as client,
    ):
        url = checked_url(outside.url("/", "docs.example"))
        assert (await client.get(url, max_bytes=MAX_BYTES)).content == b"page"
        assert names.asked == ["docs.example"]
        with pytest.raises(ItemUnreadable, match="private or special network"):
            await client.get(url, max_bytes=MAX_BYTES)
        assert inside.connections_count == 0
        assert outside.requests[0].headers["Host"] == f"docs.example:{outside.port}"


async def test_a_name_without_an_address_is_no_connection() -> None:
    async def unknown(_host: str, _port: int) -> Sequence[Address]:
        raise OSError("nobody knows")

    with pytest.raises(ItemUnreadable, match="the name docs.example is not known"):
        await fetch("http://docs.example/", resolve=unknown)


async def test_the_second_address_is_tried_when_the_first_does_not_answer(web: WebServer) -> None:
    settings = reached("127.0.0.0/8")
    names = Names(["127.0.0.9", "127.0.0.1"])
    assert await fetch(web.url("/", "docs.example"), settings, resolve=names) == b"secret"


async def test_a_proxy_of_the_environment_is_not_used(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_web() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert await fetch(web.url("/")) == b"secret"
        assert proxy.connections_count == 0


# --- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.2/", "private or special network"),
        ("http://localhost.:1/", "private or special network"),
        ("http://[::1]/", "private or special network"),
        ("http://169.254.169.254/latest/meta-data/", "private or special network"),
        ("http://0x7f.1/", "unusual form"),
        ("file:///etc/passwd", "only http and https"),
        ("http://user:secret@127.0.0.1/", "name or a password"),
        ("//127.0.0.2/", "private or special network"),
        ("http://127.0.0.1:notaport/", "reply cannot be read"),
    ],
)
async def test_a_redirect_is_judged_like_a_url(web: WebServer, location: str, reason: str) -> None:
    web.routes["/go"] = Answer(status=302, headers={"Location": location})
    with pytest.raises(ItemUnreadable, match=reason):
        # `localhost` is [::1] or 127.0.0.1; only the server's own port is open to anybody.
        await fetch(web.url("/go", "docs.example"), reached("127.0.0.1/32"), resolve=closing)


async def closing(host: str, port: int) -> Sequence[Address]:
    """The name of the test's server, and every other as it is, loopback being 127.0.0.2."""
    if host == "docs.example":
        return [ip_address("127.0.0.1")]
    return [ip_address("127.0.0.2") if "localhost" in host else ip_address(host)]


async def test_redirects_end(web: WebServer) -> None:
    for step in range(30):
        web.routes[f"/{step}"] = Answer(status=301, headers={"Location": f"/{step + 1}"})
    web.routes["/30"] = Answer(b"the end")
    with pytest.raises(ItemUnreadable, match="redirects more than"):
        await fetch(web.url("/0"))
    assert len(web.requests) == REDIRECTS_MAX + 1
    assert await fetch(web.url(f"/{30 - REDIRECTS_MAX}")) == b"the end"


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for docs.example that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "docs.example")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("docs.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "docs.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@asynccontextmanager
async def serving_tls(certificate: Path, asked: list[str | None]) -> AsyncIterator[WebServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with serving_web({"/": Answer(b"page")}, tls=context) as server:
        yield server


async def test_the_name_is_what_tls_asks_for_and_checks(certificate: Path) -> None:
    tls = ssl.create_default_context(cafile=str(certificate))
    asked: list[str | None] = []
    async with serving_tls(certificate, asked) as server:
        names = Names(["127.0.0.1"])
        url = server.url("/", "docs.example")
        assert await fetch(url, resolve=names, tls=tls) == b"page"
        assert asked == ["docs.example"]
        assert server.requests[0].headers["Host"] == f"docs.example:{server.port}"
        with pytest.raises(ItemUnreadable, match="certificate"):
            await fetch(server.url("/", "other.example"), resolve=names, tls=tls)
        with pytest.raises(ItemUnreadable, match="certificate"):
            await fetch(url, resolve=names)
        assert len(server.requests) == 1


# --- bodies ---------------------------------------------------------------------------------------


def gzip_bomb(size_bytes: int) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    zeros = bytes(1024 * 1024)
    pieces = [packer.compress(zeros) for _ in range(size_bytes // len(zeros))]
    return b"".join([*pieces, packer.flush()])


async def test_a_body_is_counted_as_it_is_unpacked(web: WebServer) -> None:
    bomb = gzip_bomb(256 * 1024 * 1024)
    web.routes["/bomb"] = Answer(bomb, headers={"Content-Encoding": "gzip"})
    tracemalloc.start()
    try:
        with pytest.raises(ItemUnreadable, match="larger than 1 MiB"):
            await fetch(web.url("/bomb"))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # What the server has of the bomb counts as well, for it runs in this process.
    assert peak_bytes < 8 * MAX_BYTES + len(bomb)


async def test_members_without_content_count_too(web: WebServer) -> None:
    empty = zlib.compressobj(9, zlib.DEFLATED, 31).flush()
    web.routes["/"] = Answer(
        empty * (2 * MAX_BYTES // len(empty)), headers={"Content-Encoding": "gzip"}
    )
    with pytest.raises(ItemUnreadable, match="larger than 1 MiB"):
        await fetch(web.url("/"))


async def test_an_endless_body_ends(web: WebServer) -> None:
    hung_up = asyncio.Event()

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(bytes(65536))
                await writer.drain()
        finally:
            hung_up.set()

    web.routes["/"] = endless
    with pytest.raises(ItemUnreadable, match="larger than 1 MiB"):
        await fetch(web.url("/"))
    async with asyncio.timeout(5):
        await hung_up.wait()


async def test_a_slow_server_is_left(web: WebServer) -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not writer.is_closing():
            writer.write(b"X-Slow: 1\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    web.routes["/"] = slow
    with pytest.raises(ItemUnreadable, match="took too long"):
        await fetch(web.url("/"), reached("127.0.0.1/32", source_timeout_seconds=0.3))


async def test_huge_headers_are_refused(web: WebServer) -> None:
    web.routes["/"] = Answer(headers={f"X-{n}": "x" * 1000 for n in range(500)})
    with pytest.raises(ItemUnreadable, match="reply cannot be read"):
        await fetch(web.url("/"))


@pytest.mark.parametrize(
    ("body", "coding", "reason"),
    [
        (zlib.compress(b"half of this" * 100, wbits=31)[:-20], "gzip", "compression is broken"),
        (b"not compressed at all", "gzip", "compression is broken"),
        (b"anything", "br", "not asked for"),
    ],
)
async def test_a_body_that_is_not_what_it_says_is_refused(
    web: WebServer, body: bytes, coding: str, reason: str
) -> None:
    web.routes["/"] = Answer(body, headers={"Content-Encoding": coding})
    with pytest.raises(ItemUnreadable, match=reason):
        await fetch(web.url("/"))


async def test_a_body_that_breaks_off_is_no_document(web: WebServer) -> None:
    async def broken(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
        await writer.drain()

    web.routes["/"] = broken
    with pytest.raises(ItemUnreadable, match="reply cannot be read"):
        await fetch(web.url("/"))


async def test_compressed_bodies_are_unpacked(web: WebServer) -> None:
    text = b"a text of several members; " * 1000
    members = zlib.compress(text, wbits=31) + zlib.compress(text, wbits=31)
    web.routes["/gzip"] = Answer(members, headers={"Content-Encoding": "gzip"})
    web.routes["/deflate"] = Answer(zlib.compress(text), headers={"Content-Encoding": "deflate"})
    assert await fetch(web.url("/gzip")) == text * 2
    assert await fetch(web.url("/deflate")) == text


# --- manners --------------------------------------------------------------------------------------


async def test_a_busy_server_is_asked_again_when_it_says(web: WebServer) -> None:
    answers = iter(
        [Answer(status=429, headers={"Retry-After": "0"}), Answer(status=200, body=b"now")]
    )
    web.routes["/"] = lambda _request: next(answers)
    assert await fetch(web.url("/")) == b"now"


async def test_a_server_that_is_busy_for_long_is_left_in_peace(web: WebServer) -> None:
    web.routes["/"] = Answer(status=503, headers={"Retry-After": "3600"})
    assert await fetch(web.url("/")) == b""
    assert len(web.requests) == 1


async def test_a_host_is_never_asked_more_than_twice_at_once(web: WebServer) -> None:
    running = most = 0
    everybody = asyncio.Event()

    async def page(writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            everybody.set()
        await everybody.wait()
        running -= 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    web.routes["/"] = page
    async with WebClient(LOCAL) as client:
        url = checked_url(web.url("/"))
        await asyncio.gather(*(client.get(url, max_bytes=MAX_BYTES) for _ in range(8)))
    assert most == 2
    assert len(web.requests) == 8


async def test_requests_say_who_asks_and_carry_nothing_else(web: WebServer) -> None:
    seen: list[Request] = web.requests
    web.routes["/"] = Answer(b"page", headers={"Set-Cookie": "id=1; Path=/"})
    settings = reached("127.0.0.1/32", source_contact="mailto:docs@example.com")
    async with WebClient(settings) as client:
        for _ in range(2):
            await client.get(checked_url(web.url("/")), max_bytes=MAX_BYTES)
    for request in seen:
        assert request.headers["User-Agent"].startswith("Footnote/")
        assert "(+mailto:docs@example.com)" in request.headers["User-Agent"]
        assert not {"Cookie", "Authorization", "Referer"} & set(request.headers)
