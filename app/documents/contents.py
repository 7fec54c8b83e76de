"""Whether an upload is what its name and its sender say, judged by its first bytes alone.

Only a certain contradiction counts: a format that cannot begin in any other way, and does not
begin so. Anything may be text, so what is called text is never refused here. What a file really
is, the parser finds out, which has more time and runs where nothing can be broken.
"""

import io
import zipfile
from pathlib import PurePosixPath
from typing import Literal

from app.errors import UnsupportedMedia

Kind = Literal["PDF", "ZIP", "picture"]

PDF_HEADER_WITHIN_BYTES = 1024

_OFFICE = ("docx", "docm", "xlsx", "xlsm", "pptx", "pptm")
_PICTURES = ("png", "jpg", "jpeg", "gif", "tif", "tiff", "webp")
_KIND_OF_EXTENSION: dict[str, Kind] = {
    "pdf": "PDF",
    **dict.fromkeys(("zip", "odt", "ods", "odp", "epub", *_OFFICE), "ZIP"),
    **dict.fromkeys(_PICTURES, "picture"),
}
_KIND_OF_MEDIA_TYPE: dict[str, Kind] = {
    "application/pdf": "PDF",
    "application/zip": "ZIP",
    "application/epub+zip": "ZIP",
    **dict.fromkeys(
        (f"image/{name}" for name in ("png", "jpeg", "gif", "tiff", "webp")), "picture"
    ),
}
_ZIPPED_MEDIA_TYPES = (
    "application/vnd.openxmlformats-officedocument.",
    "application/vnd.oasis.opendocument.",
)
_ZIPS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_BITMAPS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM")
_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ENCRYPTED_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def check_content(filename: str, content: bytes, media_type: str | None) -> None:
    """Raises UnsupportedMedia when the content cannot be what the name promises.

    `media_type` is what the sender declared, if anything; it counts when neither the name nor the
    content has to do with it, for senders often do not know better.
    """
    extension = PurePosixPath(filename).suffix.lower().removeprefix(".")
    promised = _KIND_OF_EXTENSION.get(extension)
    if promised is None:
        return
    if not _is(promised, content) and not _is_locked_office(extension, content):
        raise UnsupportedMedia(
            f"{filename} is called .{extension}, but its content is no {promised}."
        )
    declared = _declared(media_type)
    if declared is not None and declared != promised and not _is(declared, content):
        raise UnsupportedMedia(
            f"{filename} was sent as {media_type}, but its name and its content say otherwise.",
            hint="Send it with its own Content-Type, or without one.",
        )


def _declared(media_type: str | None) -> Kind | None:
    name = (media_type or "").partition(";")[0].strip().lower()
    return "ZIP" if name.startswith(_ZIPPED_MEDIA_TYPES) else _KIND_OF_MEDIA_TYPE.get(name)


def _is(kind: Kind, content: bytes) -> bool:
    match kind:
        case "PDF":
            return b"%PDF-" in content[:PDF_HEADER_WITHIN_BYTES]
        case "ZIP":
            # One that unpacks itself has a program before it.
            return content.startswith(_ZIPS) or zipfile.is_zipfile(io.BytesIO(content))
        case "picture":
            # Cameras and web servers mix up pictures; whichever it is, it can be read.
            is_boxed = content[8:12] == b"WEBP" or content[4:8] == b"ftyp"
            return is_boxed or content.startswith(_BITMAPS + _TIFFS)


def _is_locked_office(extension: str, content: bytes) -> bool:
    return extension in _OFFICE and content.startswith(_ENCRYPTED_OFFICE)
