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
            self._ids = [(one, import_module(one.module)) for one in _NATIONAL_IDS]
        except ImportError as error:
            raise ScanUnavailable from error
        self._language = language
        self._regions = _REGIONS.get(language, ())
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
        for match in _EMAIL.finditer(text):
            local, top = match[1], match[2]
            if (
                top.lower() in _NO_TOP_LEVEL
                or local.lower() == "git"
                or _REMOTE_PATH.match(text, match.end())
                or _is_user_of_url(text, match.start())
                or (len(local) >= 20 and sum(map(str.isdigit, local)) >= 10)
                or _MACHINE_HEADER.search(_line_before(text, match.start()))
            ):
                continue
            yield Found("email", match.start(), match.end(), match[0].lower())

    # --- numbers with check digits ----------------------------------------------------------------

    def _ibans(self, text: str) -> Iterator[Found]:
        for match in _IBAN.finditer(text):
            # Words in capitals may follow; only one length is right for each country.
            length = _IBAN_CHARS.get(match[0][:2], 0)
            number = match[0].replace(" ", "")[:length]
            if len(number) == length and self._iban.is_valid(number):
                end = _end_after(text, match.start(), length)
                if not text[end : end + 1].isalnum():
                    yield Found("iban", match.start(), end, number)

    def _cards(self, text: str) -> Iterator[Found]:
        for match in _CARD.finditer(text):
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
                    (is_named or (is_at_home and not _OTHER_LABEL.search(before)))
                    and module.is_valid(match[0])
                    and not _is_in_url(text, match.start())
                ):
                    yield Found(
                        "national_id", match.start(), match.end(), re.sub(r"\W", "", match[0])
                    )

    # --- phone numbers ----------------------------------------------------------------------------

    def _phones(self, text: str) -> Iterator[Found]:
        position = 0
        while match := _DIALLED.search(text, position):
            found = self._phone_at(text, match)
            if found is not None:
                yield found
                position = found.end
            else:
                position = _next_start(match)

    def _phone_at(self, text: str, match: re.Match[str]) -> Found | None:
        start, written = match.start(), match[0]
        before = text[max(0, start - _LABEL_CHARS) : start]
        is_labelled = bool(_PHONE_LABEL.search(before))
        if written.startswith("+"):
            judge: Callable[[str], str | None] = self._international
        elif self._is_code:
            return None
        elif is_labelled:
            judge = self._labelled
        elif not _AS_DIALLED.match(written) or _is_named_otherwise(text, start):
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
    return bool(_OTHER_LABEL.search(text[max(0, start - _LABEL_CHARS) : start]))


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
    for issuer in _ISSUERS:
        if issuer.prefixes.match(digits) and len(digits) in issuer.lengths:
            is_grouped = len(groups) == 1 or tuple(groups) in issuer.groups
            return is_grouped and _luhn(digits)
    return False


def _luhn(digits: str) -> bool:
    values = [int(digit) for digit in reversed(digits)]
    doubled = [2 * value - 9 * (value > 4) for value in values[1::2]]
    return (sum(values[::2]) + sum(doubled)) % 10 == 0


# --- e-mail addresses -----------------------------------------------------------------------------

_LETTER = "A-Za-z0-9\u00c0-\u024f"
_EMAIL = re.compile(
    rf"(?<![{_LETTER}])([{_LETTER}][{_LETTER}._%+'-]{{0,63}})"
    rf"@(?:[{_LETTER}](?:[{_LETTER}-]{{0,62}})\.){{1,6}}([A-Za-z]{{2,24}})(?![{_LETTER}_@-])"
)
_REMOTE_PATH = re.compile(r":(?:[~/]|[\w.-]{1,100}/)")
_MACHINE_HEADER = re.compile(r"(?i)\b(?:message-id|in-reply-to|references|content-id)\b|\bcid:")
# Endings of file names and units that come after an @ as well, and are no domains.
_NO_TOP_LEVEL = frozenset(
    """
    png jpg jpeg gif svg webp bmp ico css scss js mjs cjs jsx tsx json yaml yml toml xml txt html
    htm class java kt exe dll jar tgz gz bz2 xz deb rpm whl service socket timer target mount
    conf cfg ini log csv tsv pdf docx xlsx pptx
    """.split()  # noqa: SIM905 - a list of them would be a page long
)

# --- cards and accounts ---------------------------------------------------------------------------

_CARD = re.compile(r"(?<![\w.,+-])\d(?:[ -]?\d){12,18}(?![\w]|[-.,]\d)")


@dataclass(frozen=True, slots=True)
class _Issuer:
    prefixes: re.Pattern[str]
    lengths: frozenset[int]
    groups: tuple[tuple[int, ...], ...]


def _issuer(prefixes: str, lengths: Sequence[int], *groups: tuple[int, ...]) -> _Issuer:
    return _Issuer(re.compile(prefixes), frozenset(lengths), groups)


_FOURS = ((4, 4, 4, 4), (4, 4, 4, 4, 3))
_ISSUERS = (
    _issuer("4", (16, 19), *_FOURS),
    _issuer("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,), *_FOURS),
    _issuer("3[47]", (15,), (4, 6, 5)),
    _issuer("6011|64[4-9]|65", (16, 19), *_FOURS),
    _issuer("30[0-5]|36|38|39", (14,), (4, 6, 4)),
    _issuer("352[89]|35[3-8]", (16, 19), *_FOURS),
    _issuer("62", (16, 19), *_FOURS),
)

_IBAN_CHARS = {
    one[:2]: int(one[2:])
    for one in """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22
    DJ27 DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28
    HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25
    MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29
    RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29
    VA22 VG24 XK20 YE30
    """.split()  # noqa: SIM905 - as above
}
_IBAN = re.compile(r"(?<![\w])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")

# --- national ids ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _NationalId:
    """`module` of stdnum says what is valid. With a label it must be called so, or be at home."""

    pattern: re.Pattern[str]
    module: str
    label: re.Pattern[str] | None
    languages: frozenset[str]


def _national_id(
    pattern: str, module: str, label: str | None = None, languages: str = ""
) -> _NationalId:
    return _NationalId(
        re.compile(rf"(?<![\w.,+/-])(?:{pattern})(?![\w]|[-.,/]\d)"),
        f"stdnum.{module}",
        re.compile(rf"(?i)(?:{label})[^\w\n]{{0,4}}(?:(?:no|nr|number|is)\b)?[^\w\n]{{0,4}}$")
        if label
        else None,
        frozenset(languages.split()),
    )


_NATIONAL_IDS = (
    _national_id(r"\d{3}-\d{2}-\d{4}", "us.ssn"),
    _national_id(r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf"),
    _national_id(r"756\.\d{4}\.\d{4}\.\d{2}", "ch.ssn"),
    _national_id(r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", "be.nn"),
    _national_id(r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]", "it.codicefiscale"),
    _national_id(r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]", "fi.hetu"),
    _national_id(r"[12] ?\d\d ?(?:0[1-9]|1[0-2]) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d", "fr.nir"),
    _national_id(r"\d{8}-?[A-Z]", "es.dni", "dni|nif", "spanish"),
    _national_id(r"[XYZ]-?\d{7}-?[A-Z]", "es.nie", "nie|nif", "spanish"),
    _national_id(r"(?:19|20)?\d{6}[-+]\d{4}", "se.personnummer", "personnummer", "swedish"),
    _national_id(r"\d{6}-\d{4}", "dk.cpr", "cpr", "danish"),
    _national_id(r"\d{11}", "pl.pesel", "pesel"),
    _national_id(
        r"\d{2} ?\d{3} ?\d{3} ?\d{3}",
        "de.idnr",
        "steuer-?id(?:nr|entifikationsnummer)?|idnr|tax id",
    ),
    _national_id(r"\d{9}", "nl.bsn", "bsn|burgerservicenummer"),
    _national_id(r"\d{3}[ -]\d{3}[ -]\d{3}", "ca.sin", "sin|social insurance"),
    _national_id(r"\d{3}[ -]?\d{3}[ -]?\d{4}", "gb.nhs", "nhs"),
    _national_id(r"\d{4}[ -]?\d{4}[ -]?\d{4}", "in_.aadhaar", "aadhaar"),
)

# --- phone numbers --------------------------------------------------------------------------------

_GAP = "[ \u00a0\u2009.\u2010-\u2013/()-]"
_DIALLED = re.compile(
    rf"(?<![\w+@#=$€£%/-])(?<!\d[.,:])(?:\+ ?)?\(?\d(?:{_GAP}{{0,3}}\d){{6,16}}(?![\w@%]|,\d)"
)
# With the 0 of long distance, or as in North America; other numbers need a label.
_AS_DIALLED = re.compile(r"\(?0\d|\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}([-.])\d{3}\1\d{4}")
_PHONE_LABEL = re.compile(
    r"(?i)(?:\b(?:tel|telephone|phone|mobile|mob|cell|fax|call|whatsapp|sms|hotline|ph"
    r"|telefon|handy|mobil|durchwahl|rufnummer|t\u00e9l|t\u00e9l\u00e9phone|portable"
    r"|tel\u00e9fono|m\u00f3vil|celular|telefono|cellulare|telefone|telem\u00f3vel|telefoon"
    r"|mobiel|puhelin|puh|tlf|telefonnummer)|[\u260e\u260f\U0001f4de\u2706])"
    r"[^\w\n+(]{0,4}(?:(?:no|nr|number|nummer|us|at|on|is)\b)?[^\w\n+(]{0,4}$"
)
_OTHER_LABEL = re.compile(
    r"(?i)(?:\b(?:orders?|invoices?|tracking|serial|s/n|part|sku|item|article|art|ref|reference"
    r"|case|ticket|issue|isbn|issn|doi|ean|upc|gtin|imei|account|acct|customer|transaction|txn"
    r"|batch|lot|build|rev|revision|version|patent|id|uuid|hash|timestamp|bestellnummer|rechnung"
    r"|rechnungsnummer|kundennummer|artikelnummer|auftrag|commande|facture|pedido|factura"
    r"|ordine|fattura|no|nr)|#)"
    r"[^\w\n]{0,4}(?:(?:no|nr|number|nummer|id|code|key|is)\b)?[^\w\n]{0,4}$"
)
_REGIONS: dict[str, Sequence[str]] = {
    "english": ("US", "GB", "AU", "NZ", "IE", "ZA"),
    "german": ("DE", "AT", "CH"),
    "french": ("FR", "BE", "CH"),
    "dutch": ("NL", "BE"),
    "italian": ("IT", "CH"),
    "spanish": ("ES", "MX", "AR", "CO", "CL"),
    "portuguese": ("PT", "BR"),
    "catalan": ("ES",),
    "basque": ("ES",),
    "swedish": ("SE", "FI"),
    "danish": ("DK",),
    "norwegian": ("NO",),
    "finnish": ("FI",),
    "polish": ("PL",),
    "czech": ("CZ",),
    "hungarian": ("HU",),
    "romanian": ("RO",),
    "greek": ("GR",),
    "russian": ("RU",),
    "turkish": ("TR",),
    "serbian": ("RS",),
    "lithuanian": ("LT",),
    "estonian": ("EE",),
    "irish": ("IE",),
    "hindi": ("IN",),
    "nepali": ("NP",),
    "tamil": ("IN", "LK"),
    "indonesian": ("ID",),
    "persian": ("IR",),
    "arabic": ("EG", "SA", "AE"),
    "armenian": ("AM",),
}
