"""Word documents, rewritten so that kreuzberg loses nothing of them.

Version 4.10 drops footnotes and endnotes, the paragraph around a text box, tabs and line ends and
non-breaking hyphens (which joins the words beside them), and every entity (see `shielding.py`).
"""

import io
import re
import zipfile

from ingestion.parsing.shielding import NOTE_MARK, shield

_BODY = "word/document.xml"
_NOTES = {"foot": "word/footnotes.xml", "end": "word/endnotes.xml"}

_PULLED_OUT = re.compile(
    r"<mc:Fallback\b.*?</mc:Fallback>"
    r"|<w:txbxContent\b[^>]*>(?P<box>.*?)</w:txbxContent>"
    r"|<w:(?P<kind>foot|end)noteReference\b[^>]*?w:id=\"(?P<id>-?\d+)\"[^>]*>"
    r"|</w:p>",
    re.DOTALL,
)
_NOTE = re.compile(r"<w:(?:foot|end)note\b([^>]*)(?<!/)>(.*?)</w:(?:foot|end)note>", re.DOTALL)
_NOTE_ID = re.compile(r"w:id=\"(-?\d+)\"")
_TEXT = re.compile(r"<w:t(?:\s[^>]*)?>([^<]*)</w:t>|</w:p>")
_MARKS = (
    (re.compile(r"<w:(?:tab|cr)\s*/>"), '<w:t xml:space="preserve"> </w:t>'),
    (re.compile(r"<w:noBreakHyphen\s*/>"), "<w:t>-</w:t>"),
    (re.compile(r"<w:softHyphen\s*/>"), ""),
)

Notes = dict[tuple[str, str], str]
"""Texts, still escaped, by kind and id."""


def flatten(content: bytes) -> bytes:
    """The same document with all of its text in its body; one that is damaged as it is."""
    flat = io.BytesIO()
    try:
        with (
            zipfile.ZipFile(io.BytesIO(content)) as source,
            zipfile.ZipFile(flat, "w", zipfile.ZIP_STORED) as target,
        ):
            for info in source.infolist():
                part = source.read(info)
                if info.filename == _BODY:
                    part = _flat_body(part.decode("utf-8"), _notes(source)).encode()
                target.writestr(info.filename, part)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError):
        # Damaged, encrypted, or packed in a way that zipfile has not implemented.
        return content
    return flat.getvalue()


def _notes(source: zipfile.ZipFile) -> Notes:
    notes: Notes = {}
    for kind, name in _NOTES.items():
        if name not in source.namelist():
            continue
        for attributes, note in _NOTE.findall(source.read(name).decode("utf-8")):
            number = _NOTE_ID.search(attributes)
            if number and "w:type=" not in attributes:  # the line above the notes is one too
                pieces = [match.group(1) or " " for match in _TEXT.finditer(_marked(note))]
                notes[kind, number.group(1)] = "".join(pieces).strip()
    return notes


def _flat_body(xml: str, notes: Notes) -> str:
    """Text boxes and notes come after the paragraph that they are anchored in."""
    pending: list[str] = []
    shown = 0

    def pulled_out(match: re.Match[str]) -> str:
        nonlocal shown
        if match["box"] is not None:
            pending.append(match["box"])
            return ""
        if match["kind"]:
            text = notes.get((match["kind"], match["id"]))
            if not text:
                return ""
            shown += 1
            pending.append(f"<w:p><w:r><w:t>{NOTE_MARK}{shown}]: {text}</w:t></w:r></w:p>")
            return f"<w:t>{NOTE_MARK}{shown}]</w:t>"
        if match[0] == "</w:p>":
            after = "".join(pending)
            pending.clear()
            return f"</w:p>{after}"
        return ""

    return shield(_PULLED_OUT.sub(pulled_out, _marked(xml)))


def _marked(xml: str) -> str:
    for mark, text in _MARKS:
        xml = mark.sub(text, xml)
    return xml
