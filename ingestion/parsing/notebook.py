"""Jupyter notebooks: text as it is, code and what it printed as code."""

import json
import re
from typing import Any, cast

from app.errors import DocumentRejected
from ingestion.parsing.decoding import clean, decode
from ingestion.parsing.drafts import Draft
from ingestion.parsing.formats import NOTEBOOK

OUTPUT_CHARS_MAX = 4000
"""Of one output: a log of training would bury the rest."""

_FENCES = re.compile(r"`{3,}")
_EMBEDDED_IMAGE = re.compile(r"!\[([^\[\]]*)\]\((?:attachment:|data:)[^()]*\)")
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_LANGUAGE = re.compile(r"[\w+#-]{1,20}")


def read_notebook(content: bytes) -> Draft:
    try:
        loaded: Any = json.loads(decode(content))
    except (ValueError, RecursionError):
        raise DocumentRejected(f"damaged: it cannot be read as {NOTEBOOK.name}") from None
    notebook = _mapping(loaded)
    cells = _list(notebook.get("cells"))
    if not cells:  # as notebooks were before version 4
        cells = [cell for sheet in _list(notebook.get("worksheets"))
                 for cell in _list(_mapping(sheet).get("cells"))]  # fmt: skip
    language = _language(_mapping(notebook.get("metadata")))
    blocks = [block for cell in cells for block in _blocks(_mapping(cell), language)]
    metadata = {"language": language} if language else {}
    return Draft(text="\n\n".join(block for block in blocks if block), metadata=metadata)


def _blocks(cell: dict[str, Any], language: str) -> list[str]:
    source = _text(cell.get("source", cell.get("input")))
    match cell.get("cell_type"):
        case "code":
            outputs = [_output(_mapping(output)) for output in _list(cell.get("outputs"))]
            return [_fenced(source, language), *(_fenced(output, "") for output in outputs)]
        case "heading":
            level = cell.get("level")
            depth = level if isinstance(level, int) and 1 <= level <= 6 else 1
            return [f"{'#' * depth} {source}"]
        case "markdown":
            return [_EMBEDDED_IMAGE.sub(r"\1", source)]
        case _:
            return [_fenced(source, "")]


def _output(output: dict[str, Any]) -> str:
    """What people see of it as text."""
    data = _mapping(output.get("data"))
    text = _text(output.get("text")) or _text(data.get("text/plain"))
    text = text or _text(output.get("evalue"))
    return _CONTROL_SEQUENCE.sub("", text)[:OUTPUT_CHARS_MAX]


def _fenced(text: str, language: str) -> str:
    if not text.strip():
        return ""
    longest = max((len(fence) for fence in _FENCES.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _language(metadata: dict[str, Any]) -> str:
    for part, key in (("language_info", "name"), ("kernelspec", "language")):
        name = _mapping(metadata.get(part)).get(key)
        if isinstance(name, str) and _LANGUAGE.fullmatch(name):
            return name.lower()
    return ""


def _mapping(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _text(value: Any) -> str:
    """A text, which notebooks may keep as a list of lines."""
    parts = [part for part in _list(value) if isinstance(part, str)]
    return clean(value if isinstance(value, str) else "".join(parts)).strip("\n")
