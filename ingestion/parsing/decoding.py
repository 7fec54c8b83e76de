"""From bytes to text, whatever the encoding."""

import codecs
import re

import chardet

from app.errors import DocumentRejected

SAMPLE_BYTES = 64 * 1024
CONTROL_SHARE_MAX = 0.02
NUL_SHARE_OF_UTF16 = 0.2
CONFIDENCE_MIN = 0.1

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROL = re.compile(r"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]{2,40})""")
_DECLARATION_WITHIN_BYTES = 2048


def clean(text: str) -> str:
    """Without what PostgreSQL cannot store, and with one kind of line end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    return _UNSTORABLE.sub("", text)


def decode(content: bytes) -> str:
    """The text of a file. Raises DocumentRejected when it is no text in any encoding."""
    text = _decode(content)
    if text is None or _looks_binary(text):
        raise DocumentRejected("its content is not text")
    return clean(text)


def decode_markup(content: bytes) -> str:
    """The text of HTML or XML, which may say its encoding itself; UTF-8 needs no saying."""
    declared = _DECLARED.search(content[:_DECLARATION_WITHIN_BYTES])
    if declared and not _has_mark(content) and _utf8(content) is None:
        encoding = declared.group(1).decode("ascii").lower()
        # As browsers do: what calls itself Latin-1 was written on Windows.
        encoding = "cp1252" if encoding in ("iso-8859-1", "latin1", "us-ascii") else encoding
        try:
            return clean(content.decode(encoding))
        except (UnicodeError, LookupError):
            pass
    return decode(content)


def in_ascii_superset(content: bytes) -> bytes:
    """The same bytes, or UTF-8 for a text in UTF-16 or UTF-32."""
    wide = _has_mark(content) and not content.startswith(codecs.BOM_UTF8)
    return decode(content).encode() if wide else content


def is_text(content: bytes) -> bool:
    text = _decode(content[:SAMPLE_BYTES])
    return text is not None and not _looks_binary(text)


def _has_mark(content: bytes) -> bool:
    return content.startswith(tuple(mark for mark, _ in _BYTE_ORDER_MARKS))


def _utf8(content: bytes) -> str | None:
    try:
        # Lone surrogates come from JavaScript and old Java; `clean` takes them out.
        return content.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None


def _decode(content: bytes) -> str | None:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "replace")
    if content and content.count(0) / len(content) > NUL_SHARE_OF_UTF16:
        # ASCII in UTF-16 has a NUL in every second byte: which one tells the byte order.
        order = "le" if content[1::2].count(0) > content[0::2].count(0) else "be"
        text = content.decode(f"utf-16-{order}", "replace")
        return None if text.count("\0") > CONTROL_SHARE_MAX * len(text) else text
    text = _utf8(content)
    return _damaged_utf8(content) or _detected(content) if text is None else text


def _damaged_utf8(content: bytes) -> str | None:
    """UTF-8 with a few bad bytes, such as a log that was cut in the middle of a character."""
    text = content.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    foreign = len(content) - len(text.encode("ascii", "ignore"))
    return text if bad * 20 < foreign else None


def _detected(content: bytes) -> str | None:
    found = chardet.detect(content[:SAMPLE_BYTES])
    encoding, confidence = found["encoding"], found["confidence"]
    if encoding is None:
        return None
    if confidence < CONFIDENCE_MIN:
        try:
            return content.decode("cp1252")
        except UnicodeDecodeError:
            pass
    return content.decode(encoding, "replace")


def _looks_binary(text: str) -> bool:
    return len(_CONTROL.findall(text)) > CONTROL_SHARE_MAX * len(text)
