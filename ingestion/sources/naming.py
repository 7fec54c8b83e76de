"""What to call something from the web, so that its name ends as what it is."""

import mimetypes
import re
from email.message import Message
from urllib.parse import unquote

import httpx

NAME_CHARS_MAX = 200

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "text/html": (".html", ".htm", ".xhtml", ".shtml"),
    "application/xhtml+xml": (".xhtml", ".html", ".htm"),
    "application/pdf": (".pdf",),
    "application/epub+zip": (".epub",),
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": (".docx",),
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": (".xlsx",),
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": (".pptx",),
    "application/vnd.oasis.opendocument.text": (".odt",),
    "application/vnd.oasis.opendocument.spreadsheet": (".ods",),
}
"""Types that servers name only where they mean them, the first suffix being the usual one."""
_USUAL: dict[str, str] = {
    "application/json": ".json",
    "application/x-ndjson": ".jsonl",
    "application/yaml": ".yaml",
    "message/rfc822": ".eml",
    "text/markdown": ".md",
    "text/plain": ".txt",
    "text/x-markdown": ".md",
    "text/xml": ".xml",
}
_UNKNOWING = frozenset(
    {"application/octet-stream", "binary/octet-stream", "application/x-download"}
)
_HAS_SUFFIX = re.compile(r".+\.[A-Za-z][A-Za-z0-9]{0,9}")
_UNFIT = re.compile(r"[\x00-\x1f\x7f/\\\ud800-\udfff]+")


def name_of(url: httpx.URL) -> str:
    """The last part of the URL's path; the host's name for its root."""
    return (
        _fit(unquote(url.raw_path.split(b"?")[0].decode("ascii").rstrip("/").rpartition("/")[2]))
        or url.host
    )


def name_of_reply(url: httpx.URL, headers: httpx.Headers) -> str:
    """The name that the server gives, else that of its URL, ending as its Content-Type says."""
    message = Message()
    for field in ("Content-Disposition", "Content-Type"):
        if field in headers:
            message[field] = headers[field]
    name = _fit(message.get_filename() or "") or name_of(url)
    return _with_suffix(name, message.get_content_type() if "Content-Type" in headers else "")


def _with_suffix(name: str, media_type: str) -> str:
    meant = _SUFFIXES.get(media_type)
    if meant is not None:
        return name if name.lower().endswith(meant) else name + meant[0]
    if media_type in _UNKNOWING or _HAS_SUFFIX.fullmatch(name):
        return name
    return name + (_USUAL.get(media_type) or mimetypes.guess_extension(media_type) or "")


def _fit(name: str) -> str:
    """A plain file name without folders, its end kept when it is too long."""
    return _UNFIT.sub("_", name).strip(" ._")[-NAME_CHARS_MAX:]
