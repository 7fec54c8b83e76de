"""E-mail: the headers that people look at, the body that they read, and the attachments."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.header import decode_header
from email.message import Message
from email.utils import getaddresses, parsedate_to_datetime
from mimetypes import guess_extension
from typing import Any, TypeAlias

from app.errors import DocumentRejected
from ingestion.parsing import ocr
from ingestion.parsing.archives import (
    WARNINGS_MAX,
    Allowance,
    ReadNested,
    nested_text,
    nested_warnings,
)
from ingestion.parsing.conversion import convert, metadata_of, warnings_of
from ingestion.parsing.decoding import clean, decode_markup, in_ascii_superset
from ingestion.parsing.drafts import Draft
from ingestion.parsing.formats import MSG
from ingestion.parsing.html import html_to_markdown
from ingestion.parsing.tidying import demoted, escape_headings

HEADER_CHARS_MAX = 2000

_SHOWN_HEADERS = ("Subject", "From", "To", "Cc", "Date")
_MBOX_SEPARATOR = re.compile(rb"(?:\A|\n)From [^\n]*\n")
_SPACE = re.compile(r"\s+")

_Part: TypeAlias = "Message[str, str]"


@dataclass(frozen=True, slots=True)
class _Attachment:
    name: str
    content: bytes


def read_mail(content: bytes, allowance: Allowance, read: ReadNested) -> Draft:
    message = message_from_bytes(in_ascii_superset(content))
    headers = _shown_headers(message)
    draft = Draft(
        title=headers.get("Subject", ""),
        heading_is_title=False,
        metadata=_metadata(message, headers),
        holds_files=True,
        no_text="it is an e-mail without subject, text or readable attachment",
    )
    texts: list[str] = []
    names: list[str] = []
    for part in _parts(message):
        if isinstance(part, str):
            texts.append(part)
            continue
        names.append(part.name)
        try:
            allowance.take(len(part.content))
            nested = read(part.content, part.name)
            texts.append(nested_text(part.name, nested))
            draft.warnings += nested_warnings(part.name, nested)
        except DocumentRejected as refusal:
            draft.warnings.append(f"{part.name}: {refusal.reason}")
    draft.warnings = draft.warnings[:WARNINGS_MAX]
    draft.metadata["attachments"] = names
    texts = [text for text in texts if text.strip()]
    if texts or "Subject" in headers:
        draft.text = "\n\n".join([_header_lines(headers), *texts])
    return draft


def read_outlook(content: bytes) -> Draft:
    """A message as Outlook saves it; kreuzberg reads it with its attachments."""
    result = convert(content, MSG, output="plain")
    metadata = metadata_of(result)
    for key in ("to_emails", "cc_emails"):
        metadata[key] = _addresses(", ".join(metadata.get(key, [])))
    metadata["from_email"] = next(iter(_addresses(metadata.get("from_email"))), None)
    texts = [escape_headings(clean(result.content).strip())]
    for child in result.children or []:
        if child["result"].content.strip():
            attachment = Draft(text=clean(child["result"].content), markup="plain")
            texts.append(nested_text(child["path"], attachment))
    return Draft(
        text="\n\n".join(texts),
        title=str(metadata.get("subject") or ""),
        heading_is_title=False,
        metadata=metadata,
        warnings=warnings_of(result),
    )


def read_mailbox(content: bytes, allowance: Allowance, read: ReadNested) -> Draft:
    """Every message of an mbox file, under its subject."""
    draft = Draft(heading_is_title=False, no_text="it holds no messages", holds_files=True)
    texts: list[str] = []
    for message in _MBOX_SEPARATOR.split(content)[1:]:
        allowance.take(0)
        mail = read_mail(message, allowance, read)
        if mail.text:
            texts.append(f"# {mail.title or 'No subject'}\n\n{demoted(mail.text)}")
        draft.warnings += mail.warnings
    draft.text = "\n\n".join(texts)
    draft.warnings = draft.warnings[:WARNINGS_MAX]
    return draft


def _shown_headers(message: _Part) -> dict[str, str]:
    headers = {name: _header(message, name) for name in _SHOWN_HEADERS}
    return {name: value for name, value in headers.items() if value}


def _header_lines(headers: dict[str, str]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in headers.items())


def _metadata(message: _Part, headers: dict[str, str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "subject": headers.get("Subject"),
        "from_email": next(iter(_addresses(headers.get("From"))), None),
        "to_emails": _addresses(headers.get("To")),
        "cc_emails": _addresses(headers.get("Cc")),
        "message_id": _header(message, "Message-ID"),
    }
    try:
        metadata["created_at"] = parsedate_to_datetime(headers.get("Date", "")).isoformat()
    except (ValueError, TypeError, IndexError, OverflowError):
        metadata["created_at"] = headers.get("Date")
    return metadata


def _addresses(header: str | None) -> list[str]:
    return [address for _, address in getaddresses([header or ""]) if address]


def _parts(part: _Part) -> Iterator[str | _Attachment]:
    """Texts and attachments in reading order; of alternatives the one that is written as text."""
    kind = part.get_content_type()
    if part.is_multipart():
        children = _children(part)
        if kind == "multipart/alternative":
            children = _preferred(children)
        for child in children:
            if kind == "message/rfc822":
                yield _header_lines(_shown_headers(child))
            yield from _parts(child)
    elif kind == "text/html" and not _is_attached(part):
        yield html_to_markdown(_text(part))
    elif kind in ("text/plain", "text/markdown") and not _is_attached(part):
        yield escape_headings(_text(part).strip())
    elif _is_readable(part, kind):
        yield _Attachment(_name(part, kind), _payload(part))


def _children(part: _Part) -> list[_Part]:
    payload: Any = part.get_payload()
    return [child for child in payload if isinstance(child, Message)]


def _preferred(alternatives: list[_Part]) -> list[_Part]:
    for child in alternatives:
        if child.get_content_type() == "text/plain" and _text(child).strip():
            return [child]
    others = [child for child in alternatives if child.get_content_type() != "text/plain"]
    readable = [
        child for child in others if child.is_multipart() or child.get_content_type() == "text/html"
    ]
    return readable[-1:]


def _is_attached(part: _Part) -> bool:
    return part.get_content_disposition() == "attachment" or bool(part.get_filename())


def _is_readable(part: _Part, kind: str) -> bool:
    if kind.endswith("-signature"):
        return False
    # Logos and smileys, in most mails.
    if kind.startswith("image/") and not ocr.available():
        return False
    return _is_attached(part)


def _payload(part: _Part) -> bytes:
    payload: Any = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _text(part: _Part) -> str:
    content = _payload(part)
    try:
        return clean(content.decode(part.get_content_charset("")))
    except (UnicodeError, LookupError):
        return _guessed(content)


def _guessed(content: bytes) -> str:
    """What says no encoding, or a wrong one, and is shown in any case."""
    try:
        return decode_markup(content)
    except DocumentRejected:
        return clean(content.decode("ascii", "ignore"))


def _name(part: _Part, kind: str) -> str:
    name = part.get_filename()
    if name:
        return _decoded(name)
    return f"attachment{guess_extension(kind) or ''}"


def _header(message: _Part, name: str) -> str:
    for key, value in message.raw_items():
        if key.lower() == name.lower():
            return _decoded(str(value))
    return ""


def _decoded(raw: str) -> str:
    """A header as people read it: encoded words decoded, raw bytes taken for what they must be."""
    raw = _guessed(raw[:HEADER_CHARS_MAX].encode("utf-8", "surrogateescape"))
    text = ""
    for piece, charset in decode_header(raw):
        if isinstance(piece, str):
            text += piece
            continue
        try:
            text += piece.decode(charset or "ascii", "replace")
        except LookupError:
            text += piece.decode("utf-8", "replace")
    return _SPACE.sub(" ", clean(text)).strip()
