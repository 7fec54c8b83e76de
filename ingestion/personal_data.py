"""Personal data in parsed documents: counted, masked, or a reason to refuse.

What is looked for stands in `ingestion/recognition/`; here is what follows from it.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from app.db.collection_settings import PersonalDataPolicy
from app.errors import DocumentRejected
from ingestion.recognition import Found, Kind, Recognizer
from ingestion.types import ParsedDocument

SCAN_VERSION = 1
"""Raised when the same document may be judged otherwise, so that it is scanned again."""

_MARKS: dict[Kind, str] = {
    "email": "[e-mail address]",
    "phone": "[phone number]",
    "card": "[card number]",
    "iban": "[IBAN]",
    "national_id": "[national id]",
}
_NAMES: dict[Kind, tuple[str, str]] = {
    "email": ("e-mail address", "e-mail addresses"),
    "phone": ("phone number", "phone numbers"),
    "card": ("card number", "card numbers"),
    "iban": ("IBAN", "IBANs"),
    "national_id": ("national id", "national ids"),
}


class PersonalDataRefused(DocumentRejected):
    """A document holds what its collection does not take; `counts` are by kind."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        listed = ", ".join(
            f"{count} {_NAMES[cast('Kind', kind)][count != 1]}" for kind, count in counts.items()
        )
        super().__init__(f"it holds personal data, which its collection refuses: {listed}")
        self.counts = dict(counts)


def scan(
    parsed: ParsedDocument, given: Mapping[str, Any], policy: PersonalDataPolicy
) -> tuple[ParsedDocument, Mapping[str, Any]]:
    """A document, and the metadata that came with it, as the collection's policy lets them be kept.

    The document says how many different values of each kind there are, in its text, its title
    and all metadata. Raises PersonalDataRefused, and ScanUnavailable where the extra `pii` is not installed.
    """
    if policy == "off":
        return parsed, given
    recognizer = Recognizer(parsed.language, is_code=parsed.markup == "code")
    in_text = recognizer.find(parsed.text)
    values: dict[Kind, set[str]] = {}
    for one in in_text:
        values.setdefault(one.kind, set()).add(one.value)

    def masked(text: str) -> str:
        found = recognizer.find(text)
        for one in found:
            values.setdefault(one.kind, set()).add(one.value)
        return _masked(text, found)

    kept = replace(
        parsed,
        title=masked(parsed.title),
        warnings=tuple(map(masked, parsed.warnings)),
        metadata=_mapped(parsed.metadata, masked),
    )
    given_masked = _mapped(given, masked)
    counts: dict[str, int] = {kind: len(values[kind]) for kind in _MARKS if kind in values}
    if policy == "refuse" and counts:
        raise PersonalDataRefused(counts)
    if policy == "mask" and counts:
        return replace(_with_masked_text(kept, in_text), personal_data=counts), given_masked
    return replace(parsed, personal_data=counts), given


def _mapped(value: Any, masked: Any) -> Any:
    match value:
        case str():
            return masked(value)
        case Mapping():
            items = cast("Mapping[str, Any]", value).items()
            return {key: _mapped(item, masked) for key, item in items}
        case list() | tuple():
            return [_mapped(item, masked) for item in cast("Sequence[Any]", value)]
        case _:
            return value


def _masked(text: str, found: Sequence[Found]) -> str:
    parts: list[str] = []
    end = 0
    for one in found:
        parts += [text[end : one.start], _MARKS[one.kind]]
        end = one.end
    return "".join([*parts, text[end:]])


def _with_masked_text(parsed: ParsedDocument, found: Sequence[Found]) -> ParsedDocument:
    """The document with marks in its text, and every offset moved along."""
    ends = [one.end for one in found]
    # How much longer the text has become after each mark.
    grown = [0]
    for one in found:
        grown.append(grown[-1] + len(_MARKS[one.kind]) - (one.end - one.start))

    def moved(position: int) -> int:
        index = bisect_right(ends, position)
        inside = position - found[index].start if index < len(found) else 0
        if inside > 0:  # a page ends within what is found
            position -= max(inside - len(_MARKS[found[index].kind]), 0)
        return position + grown[index]

    return replace(
        parsed,
        text=_masked(parsed.text, found),
        pages=tuple(
            replace(page, start=moved(page.start), end=moved(page.end)) for page in parsed.pages
        ),
        outline=tuple(replace(part, start=moved(part.start)) for part in parsed.outline),
    )
