"""Which URLs name a document that Footnote may fetch, as far as the text alone can tell."""

import re
from ipaddress import IPv4Address

import httpx

URL_CHARS_MAX = 2048

_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_NUMERIC = re.compile(r"(?:[^:]*\.)?(?:0x[0-9a-f]*|[0-9]+)\.?", re.IGNORECASE)


class Refused(Exception):
    """Footnote does not go there; `reason` is for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def checked_url(text: str) -> httpx.URL:
    """The URL without its fragment; raises Refused for one that no document is at.

    Only http and https, no name and password, and an IP address in its usual form only. Where it
    leads is judged when somebody connects.
    """
    if len(text) > URL_CHARS_MAX:
        raise Refused(f"its URL is longer than {URL_CHARS_MAX} characters")
    try:
        url = httpx.URL(text).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError) as error:
        raise Refused(f"its URL cannot be understood: {error}") from error
    if url.scheme not in ("http", "https"):
        raise Refused("only http and https URLs are read")
    if url.userinfo:
        raise Refused("a URL must not hold a name or a password")
    host = url.raw_host.decode("ascii")
    if not _HOST.fullmatch(host):
        raise Refused("its URL names no host")
    if url.port is not None and not 0 < url.port < 65536:
        raise Refused("its URL has a port that does not exist")
    if _NUMERIC.fullmatch(host):
        try:
            IPv4Address(host)
        except ValueError:
            raise Refused("its URL holds an IP address in an unusual form") from None
    return url
