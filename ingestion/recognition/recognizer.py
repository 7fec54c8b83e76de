"""Which pieces of a text are e-mail addresses, phone and card numbers, IBANs and national ids.

Precision comes before completeness: what has a check digit must pass it, and what has none must
be written as such numbers are, or be called one. Versions, dates, hashes, ISBNs and order numbers
are none. Every pattern is bounded, so that the time is linear in the text's length.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any, Literal

from app.errors import DocumentRejected, ScanUnavailable
from ingestion.recognition.rules import (
    AS_DIALLED,
    CARD,
    DIALLED,
    EMAIL,
    IBAN,
    IBAN_CHARS,
    ISSUERS,
    MACHINE_HEADER,
    NATIONAL_IDS,
    NO_TOP_LEVEL,
    OTHER_LABEL,
    PHONE_LABEL,
    REGIONS,
    REMOTE_PATH,
)

Kind = Literal["email", "phone", "card", "iban", "national_id"]


@dataclass(frozen=True, slots=True)
class Found:
    """`text[start:end]`, within one line; `value` is equal for two ways to write the same."""

    kind: Kind
    start: int
    end: int
    value: str


class Recognizer:
    """For the texts of one document in one language, a Snowball name.

    Raises ScanUnavailable without the extra, and DocumentRejected for more numbers than can be
    looked at in good time.
    """

    def __init__(self, language: str, *, is_code: bool = False) -> None:
        try:
            self._phonenumbers: Any = import_module("phonenumbers")
            self._iban: Any = import_module("stdnum.iban")
            self._ids = [(one, import_module(one.module)) for one in NATIONAL_IDS]
        except ImportError as error:
            raise ScanUnavailable from error
        self._language = language
        self._regions = REGIONS.get(language, ())
        self._shapes = {region: self._shape(region) for region in self._regions}
        self._judged: dict[tuple[str, str | None], str | None] = {}
        self._groups: dict[str, list[str]] = {}
        # Programs are full of numbers: in them only those with a country code are for calling.
        self._is_code = is_code

    def find(self, text: str) -> list[Found]:
        """In the order of the text; no two overlap."""
        found: list[Found] = []
        # The surest kinds first; what is found is hidden from those that follow.
        for look in (self._emails, self._ibans, self._national_ids, self._cards, self._phones):
            new = list(look(text))
            found += new
            text = _hidden(text, new)
        return sorted(found, key=lambda one: one.start)

    # --- addresses --------------------------------------------------------------------------------

    def _emails(self, text: str) -> Iterator[Found]:
        if "@" not in text:
            return
        for match in EMAIL.finditer(text):
            local, top = match[1], match[2]
            if (
                top.lower() in NO_TOP_LEVEL
                or local.lower() == "git"
                or REMOTE_PATH.match(text, match.end())
                or _is_user_of_url(text, match.start())
                or (len(local) >= 20 and sum(map(str.isdigit, local)) >= 10)
                or MACHINE_HEADER.search(_line_before(text, match.start()))
            ):
                continue
            yield Found("email", match.start(), match.end(), match[0].lower())

    # --- numbers with check digits ----------------------------------------------------------------

    def _ibans(self, text: str) -> Iterator[Found]:
        for match in IBAN.finditer(text):
            # Words in capitals may follow; only one length is right for each country.
            length = IBAN_CHARS.get(match[0][:2], 0)
            number = match[0].replace(" ", "")[:length]
            if len(number) == length and self._iban.is_valid(number):
                end = _end_after(text, match.start(), length)
                if not text[end : end + 1].isalnum():
                    yield Found("iban", match.start(), end, number)

    def _cards(self, text: str) -> Iterator[Found]:
        for match in CARD.finditer(text):
            digits = _digits(match[0])
            gaps = set(match[0]) & {" ", "-"}
            if (
                len(gaps) < 2
                and len(set(digits)) > 1
                and _is_card(digits, [len(part) for part in re.split("[ -]", match[0])])
                and not _is_named_otherwise(text, match.start())
                and not _is_in_url(text, match.start())
            ):
                yield Found("card", match.start(), match.end(), digits)

    def _national_ids(self, text: str) -> Iterator[Found]:
        for rule, module in self._ids:
            for match in rule.pattern.finditer(text):
                before = text[max(0, match.start() - _LABEL_CHARS) : match.start()]
                is_named = rule.label is not None and rule.label.search(before)
                is_at_home = rule.label is None or self._language in rule.languages
                if (
                    (is_named or (is_at_home and not OTHER_LABEL.search(before)))
                    and module.is_valid(match[0])
                    and not _is_in_url(text, match.start())
                ):
                    yield Found(
                        "national_id", match.start(), match.end(), re.sub(r"\W", "", match[0])
                    )

    # --- phone numbers ----------------------------------------------------------------------------

    def _phones(self, text: str) -> Iterator[Found]:
        position = 0
        while match := DIALLED.search(text, position):
            found = self._phone_at(text, match)
            if found is not None:
                yield found
                position = found.end
            else:
                position = _next_start(match)

    def _phone_at(self, text: str, match: re.Match[str]) -> Found | None:
        start, written = match.start(), match[0]
        before = text[max(0, start - _LABEL_CHARS) : start]
        is_labelled = bool(PHONE_LABEL.search(before))
        if written.startswith("+"):
            judge: Callable[[str], str | None] = self._international
        elif self._is_code:
            return None
        elif is_labelled:
            judge = self._labelled
        elif not AS_DIALLED.match(written) or _is_named_otherwise(text, start):
            return None
        else:
            judge = self._national
        if _is_in_url(text, start) and not before.endswith("tel:"):
            return None
        # What follows the number may be one more group of digits.
        for end in _group_ends(written):
            value = judge(written[:end])
            if value is not None:
                return Found("phone", start, start + end, value)
        return None

    def _international(self, written: str) -> str | None:
        return self._valid(written, None)

    def _labelled(self, written: str) -> str | None:
        # Who dials 00 for other countries writes it for the plus.
        if written.startswith("00") and (value := self._valid(f"+{written[2:]}", None)):
            return value
        return next(filter(None, (self._valid(written, one) for one in self._regions)), None)

    def _national(self, written: str) -> str | None:
        """A number without a country code must be divided as its country divides it."""
        groups = re.findall(r"\d+", written)
        if written.startswith("00"):
            return self._valid(f"+{written[2:]}", None) if len(groups) > 1 else None
        if len(groups) < 2 or _is_series(groups):
            return None
        for region in self._regions:
            value = self._valid(written, region)
            if value is None:
                continue
            usual = self._groups_at_home(value)
            has_area_code = len(groups[0]) > 2 and groups[0] == usual[0]
            if groups == usual or has_area_code:
                return value
        return None

    def _shape(self, region: str) -> re.Pattern[str]:
        """The country's numbers, with whatever one dials before them at home."""
        metadata = self._phonenumbers.PhoneMetadata.metadata_for_region(region)
        prefix = re.escape(metadata.national_prefix or "")
        return re.compile(f"(?:{prefix})?(?:{metadata.general_desc.national_number_pattern})")

    def _valid(self, written: str, region: str | None) -> str | None:
        """The number with its country code, when there can be such a number."""
        # Looking is much faster than parsing.
        if region is not None and not self._shapes[region].fullmatch(_digits(written)):
            return None
        if (written, region) not in self._judged:
            if len(self._judged) >= _NUMBERS_MAX:
                raise DocumentRejected("it holds too many numbers to look for personal data in it")
            self._judged[written, region] = self._parsed(written, region)
        return self._judged[written, region]

    def _parsed(self, written: str, region: str | None) -> str | None:
        try:
            number = self._phonenumbers.parse(written, region)
        except self._phonenumbers.NumberParseException:
            return None
        if not self._phonenumbers.is_valid_number(number):
            return None
        formats = self._phonenumbers.PhoneNumberFormat
        return str(self._phonenumbers.format_number(number, formats.E164))

    def _groups_at_home(self, value: str) -> list[str]:
        """The number's digits as they are divided in its own country."""
        if value not in self._groups:
            number = self._phonenumbers.parse(value, None)
            formats = self._phonenumbers.PhoneNumberFormat
            written = str(self._phonenumbers.format_number(number, formats.NATIONAL))
            self._groups[value] = re.findall(r"\d+", written)
        return self._groups[value]


# --- what stands around ---------------------------------------------------------------------------

_NUMBERS_MAX = 200_000
_LABEL_CHARS = 32
_TOKEN_CHARS = 300


def _hidden(text: str, found: Sequence[Found]) -> str:
    if not found:
        return text
    parts: list[str] = []
    end = 0
    for one in found:
        parts += [text[end : one.start], "\0" * (one.end - one.start)]
        end = one.end
    return "".join([*parts, text[end:]])


def _word_before(text: str, start: int) -> str:
    """What stands before `start` without a space between."""
    before = text[max(0, start - _TOKEN_CHARS) : start]
    if not before or before[-1].isspace():
        return ""
    return before.rsplit(None, 1)[-1]


def _line_before(text: str, start: int) -> str:
    return text[max(0, start - _TOKEN_CHARS) : start].rpartition("\n")[2]


def _is_in_url(text: str, start: int) -> bool:
    word = _word_before(text, start)
    return "://" in word or "www." in word


def _is_user_of_url(text: str, start: int) -> bool:
    """Whether a name and password for a server are meant, as in `ftp://name@host`."""
    _, scheme, authority = _word_before(text, start).rpartition("://")
    return bool(scheme) and not re.search("[/?#]", authority)


def _is_named_otherwise(text: str, start: int) -> bool:
    return bool(OTHER_LABEL.search(text[max(0, start - _LABEL_CHARS) : start]))


def _digits(written: str) -> str:
    return re.sub(r"\D", "", written)


def _end_after(text: str, start: int, chars: int) -> int:
    """Where `chars` characters that are no spaces end."""
    end = start
    while chars:
        chars -= text[end] != " "
        end += 1
    return end


def _group_ends(written: str) -> Iterator[int]:
    """The ends of the groups of digits, the last one first."""
    ends = [match.end() for match in re.finditer(r"\d+", written)]
    return reversed(ends)


def _next_start(match: re.Match[str]) -> int:
    """Where a number may begin inside of what was none."""
    inside = re.compile(r"(?<=[ \u00a0])\(?0\d|(?<=[ \u00a0])\(").search(
        match.string, match.start() + 1, match.end()
    )
    return inside.start() if inside else match.end()


def _is_series(groups: Sequence[str]) -> bool:
    """Whether somebody is counting: 01 02 03 04 05."""
    steps = {int(after) - int(before) for before, after in pairwise(groups)}
    return len(groups) > 2 and len(steps) == 1


def _is_card(digits: str, groups: Sequence[int]) -> bool:
    """Whether a card may have this number, divided into groups of these lengths."""
    for issuer in ISSUERS:
        if issuer.prefixes.match(digits) and len(digits) in issuer.lengths:
            is_grouped = len(groups) == 1 or tuple(groups) in issuer.groups
            return is_grouped and _luhn(digits)
    return False


def _luhn(digits: str) -> bool:
    values = [int(digit) for digit in reversed(digits)]
    doubled = [2 * value - 9 * (value > 4) for value in values[1::2]]
    return (sum(values[::2]) + sum(doubled)) % 10 == 0
