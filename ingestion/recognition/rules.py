"""The patterns and tables of what is recognized, without the code that judges."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# --- e-mail addresses -----------------------------------------------------------------------------

LETTER = "A-Za-z0-9\u00c0-\u024f"
EMAIL = re.compile(
    rf"(?<![{LETTER}])([{LETTER}][{LETTER}._%+'-]{{0,63}})"
    rf"@(?:[{LETTER}](?:[{LETTER}-]{{0,62}})\.){{1,6}}([A-Za-z]{{2,24}})(?![{LETTER}_@-])"
)
REMOTE_PATH = re.compile(r":(?:[~/]|[\w.-]{1,100}/)")
MACHINE_HEADER = re.compile(r"(?i)\b(?:message-id|in-reply-to|references|content-id)\b|\bcid:")
# Endings of file names and units that come after an @ as well, and are no domains.
NO_TOP_LEVEL = frozenset(
    """
    png jpg jpeg gif svg webp bmp ico css scss js mjs cjs jsx tsx json yaml yml toml xml txt html
    htm class java kt exe dll jar tgz gz bz2 xz deb rpm whl service socket timer target mount
    conf cfg ini log csv tsv pdf docx xlsx pptx
    """.split()  # noqa: SIM905 - a list of them would be a page long
)

# --- cards and accounts ---------------------------------------------------------------------------

CARD = re.compile(r"(?<![\w.,+-])\d(?:[ -]?\d){12,18}(?![\w]|[-.,]\d)")


@dataclass(frozen=True, slots=True)
class Issuer:
    prefixes: re.Pattern[str]
    lengths: frozenset[int]
    groups: tuple[tuple[int, ...], ...]


def _issuer(prefixes: str, lengths: Sequence[int], *groups: tuple[int, ...]) -> Issuer:
    return Issuer(re.compile(prefixes), frozenset(lengths), groups)


FOURS = ((4, 4, 4, 4), (4, 4, 4, 4, 3))
ISSUERS = (
    _issuer("4", (16, 19), *FOURS),
    _issuer("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,), *FOURS),
    _issuer("3[47]", (15,), (4, 6, 5)),
    _issuer("6011|64[4-9]|65", (16, 19), *FOURS),
    _issuer("30[0-5]|36|38|39", (14,), (4, 6, 4)),
    _issuer("352[89]|35[3-8]", (16, 19), *FOURS),
    _issuer("62", (16, 19), *FOURS),
)

IBAN_CHARS = {
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
IBAN = re.compile(r"(?<![\w])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")

# --- national ids ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NationalId:
    """`module` of stdnum says what is valid. With a label it must be called so, or be at home."""

    pattern: re.Pattern[str]
    module: str
    label: re.Pattern[str] | None
    languages: frozenset[str]


def _national_id(
    pattern: str, module: str, label: str | None = None, languages: str = ""
) -> NationalId:
    return NationalId(
        re.compile(rf"(?<![\w.,+/-])(?:{pattern})(?![\w]|[-.,/]\d)"),
        f"stdnum.{module}",
        re.compile(rf"(?i)(?:{label})[^\w\n]{{0,4}}(?:(?:no|nr|number|is)\b)?[^\w\n]{{0,4}}$")
        if label
        else None,
        frozenset(languages.split()),
    )


NATIONAL_IDS = (
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

GAP = "[ \u00a0\u2009.\u2010-\u2013/()-]"
DIALLED = re.compile(
    rf"(?<![\w+@#=$€£%/-])(?<!\d[.,:])(?:\+ ?)?\(?\d(?:{GAP}{{0,3}}\d){{6,16}}(?![\w@%]|,\d)"
)
# With the 0 of long distance, or as in North America; other numbers need a label.
AS_DIALLED = re.compile(r"\(?0\d|\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}([-.])\d{3}\1\d{4}")
PHONE_LABEL = re.compile(
    r"(?i)(?:\b(?:tel|telephone|phone|mobile|mob|cell|fax|call|whatsapp|sms|hotline|ph"
    r"|telefon|handy|mobil|durchwahl|rufnummer|t\u00e9l|t\u00e9l\u00e9phone|portable"
    r"|tel\u00e9fono|m\u00f3vil|celular|telefono|cellulare|telefone|telem\u00f3vel|telefoon"
    r"|mobiel|puhelin|puh|tlf|telefonnummer)|[\u260e\u260f\U0001f4de\u2706])"
    r"[^\w\n+(]{0,4}(?:(?:no|nr|number|nummer|us|at|on|is)\b)?[^\w\n+(]{0,4}$"
)
OTHER_LABEL = re.compile(
    r"(?i)(?:\b(?:orders?|invoices?|tracking|serial|s/n|part|sku|item|article|art|ref|reference"
    r"|case|ticket|issue|isbn|issn|doi|ean|upc|gtin|imei|account|acct|customer|transaction|txn"
    r"|batch|lot|build|rev|revision|version|patent|id|uuid|hash|timestamp|bestellnummer|rechnung"
    r"|rechnungsnummer|kundennummer|artikelnummer|auftrag|commande|facture|pedido|factura"
    r"|ordine|fattura|no|nr)|#)"
    r"[^\w\n]{0,4}(?:(?:no|nr|number|nummer|id|code|key|is)\b)?[^\w\n]{0,4}$"
)
REGIONS: dict[str, Sequence[str]] = {
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
