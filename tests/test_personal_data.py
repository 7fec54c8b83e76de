"""The scan for personal data: what it takes for some, what not, and what follows from it."""

import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from app.db.collection_settings import PersonalDataPolicy
from app.errors import DocumentRejected, ScanUnavailable
from ingestion.personal_data import PersonalDataRefused, scan
from ingestion.recognition import Recognizer
from ingestion.types import Page, ParsedDocument, Section

POSITIVES: list[tuple[str, str, str]] = [
    ("email", "english", "Write to jane.doe@example.com today."),
    ("email", "english", "<bob@mail.example.co.uk>"),
    ("email", "english", "mailto:first_last+tag@sub.domain.org"),
    ("email", "german", "Kontakt: jörg.müller@straße-köln.de"),
    ("email", "english", "O'Brien: pat.o'brien@company.ie"),
    ("email", "english", "12345678@qq.com"),
    ("email", "english", "联系bob@firma.cn吧"),
    ("email", "english", "https://example.com/unsubscribe?email=ann@lee.net"),
    ("email", "english", "Ann Lee ann@lee.net, Bonn"),
    ("email", "english", "(JOHN@DOE.COM)"),
    ("email", "english", "x@y.io: please reply"),
    ("email", "english", "# Copyright 2024 Jo Ray <jo@ray.dev>"),
    ("phone", "english", "Call +1 415 555 2671 now"),
    ("phone", "english", "+1-202-555-0143"),
    ("phone", "english", "+14155552671"),
    ("phone", "english", "(415) 555-2671"),
    ("phone", "english", "415-555-2671"),
    ("phone", "english", "415.555.2671"),
    ("phone", "english", "Phone: 415 555 2671"),
    ("phone", "english", "Tel. 4155552671"),
    ("phone", "english", "+44 20 7946 0958"),
    ("phone", "english", "020 7946 0958"),
    ("phone", "english", "Mobile no. 07911 123456"),
    ("phone", "english", "+44 (0)20 7946 0958"),
    ("phone", "english", "tel:+4930901820"),
    ("phone", "english", "0412 345 678"),
    ("phone", "english", "Room 12, 020 7946 0958"),
    ("phone", "english", "reach me at +91 98765 43210."),
    ("phone", "english", "+81 3-1234-5678"),
    ("phone", "english", "| Ann | (415) 555-2671 | Bonn |"),
    ("phone", "german", "Tel.: 030 901820"),
    ("phone", "german", "Telefon 030/901820"),
    ("phone", "german", "030 90 18 20"),
    ("phone", "german", "0171 1234567"),
    ("phone", "german", "0171-123 45 67"),
    ("phone", "german", "+49 171 1234567"),
    ("phone", "german", "0049 30 901820"),
    ("phone", "german", "Tel.030 901820"),
    ("phone", "french", "01 42 68 53 00"),
    ("phone", "french", "06.12.34.56.78"),
    ("phone", "french", "Tél : 01 42 68 53 00"),
    ("phone", "spanish", "Teléfono: 912 345 678"),
    ("phone", "spanish", "+34 612 34 56 78"),
    ("phone", "dutch", "020 624 1111"),
    ("phone", "danish", "Tlf. 32 12 34 56"),
    ("phone", "swedish", "08-123 456 78"),
    ("card", "english", "Card 4111 1111 1111 1111 exp 12/27"),
    ("card", "english", "4242424242424242"),
    ("card", "english", "5555-5555-5555-4444"),
    ("card", "english", "2223 0031 2200 3222"),
    ("card", "english", "3782 822463 10005"),
    ("card", "english", "378282246310005"),
    ("card", "english", "6011 1111 1111 1117"),
    ("card", "english", "3056 930902 5904"),
    ("card", "english", "3530 1113 3330 0000"),
    ("iban", "german", "IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFFXXX"),
    ("iban", "english", "GB82WEST12345698765432"),
    ("iban", "french", "FR14 2004 1010 0505 0001 3M02 606"),
    ("iban", "dutch", "NL91ABNA0417164300."),
    ("iban", "norwegian", "NO93 8601 1117 947"),
    ("iban", "english", "MT84MALT011000012345MTLCAST001S"),
    ("national_id", "english", "SSN: 123-45-6789"),
    ("national_id", "english", "her number is 536-90-4399,"),
    ("national_id", "portuguese", "CPF 390.533.447-05"),
    ("national_id", "german", "AHV 756.9217.0769.85"),
    ("national_id", "french", "NIR 2 95 10 99 126 111 93"),
    ("national_id", "italian", "RCCMNL83S18D969H"),
    ("national_id", "finnish", "131052-308T"),
    ("national_id", "spanish", "DNI 54362315K"),
    ("national_id", "spanish", "X-2482300W"),
    ("national_id", "swedish", "880320-0016"),
    ("national_id", "polish", "PESEL 44051401359"),
    ("national_id", "german", "Steuer-ID: 36 574 261 809"),
    ("national_id", "dutch", "BSN 111222333"),
    ("national_id", "english", "NHS number 943 476 5870"),
    ("national_id", "dutch", "85.07.30-033.28"),
]

NEGATIVES: list[tuple[str, str]] = [
    # addresses of things
    ("english", "git clone git@github.com:org/project.git"),
    ("english", "scp root@server.example.com:/var/log/syslog ."),
    ("english", "ssh://deploy@host.example.com/srv/app"),
    ("english", "https://user@host.example.com/path"),
    ("english", "ftp://name:secret@files.example.com"),
    ("english", "logo@2x.png and icon@3x.svg"),
    ("english", "npm install lodash@4.17.21"),
    ("english", "import x from '@scope/package'"),
    ("english", "@app.get('/health')"),
    ("english", "getty@tty1.service is running"),
    ("english", "mail the admin @ noon"),
    ("english", "Message-ID: <20240101.99@mail.example.com>"),
    ("english", "In-Reply-To: <CAF=abc@mail.gmail.com>"),
    ("english", "<4f8a1c20240105112233445566@host.example.net>"),
    ("english", "follow us @footnote.app"),
    ("english", "user@localhost"),
    ("english", "a@b"),
    ("english", "twitter.com/@name"),
    ("english", "style@media.css"),
    ("english", "postgresql://app:pw@db.internal.example.com:5432/app"),
    # versions, builds, hashes
    ("english", "version 1.2.3.4"),
    ("english", "Python 3.11.10, pip 24.0.1"),
    ("english", "build 2024.01.15.1234"),
    ("english", "v0.10.2-rc.1+20240115"),
    ("english", "commit 4111111111111111a2b3"),
    ("english", "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
    ("english", "550e8400-e29b-41d4-a716-446655440000"),
    ("english", "urn:uuid:41111111-1111-1111-1111-111111111111"),
    ("english", "0x4242424242424242"),
    ("english", "linux-image-6.1.0-18-amd64 6.1.76-1"),
    ("english", "Windows 10.0.19045.3930"),
    ("english", "md5: d41d8cd98f00b204e9800998ecf8427e"),
    # addresses of machines
    ("english", "192.168.178.100"),
    ("english", "10.0.0.1/24 and 172.16.254.1:8080"),
    ("english", "2001:0db8:85a3:0000:0000:8a2e:0370:7334"),
    ("english", "MAC 00-1B-44-11-3A-B7"),
    ("english", "MAC 00:1b:44:11:3a:b7"),
    # dates and times
    ("english", "2024-01-15 10:30:00"),
    ("english", "2024-01-15T10:30:00+0200"),
    ("english", "2024-01-15T10:30:00.123456+01:00"),
    ("english", "01/02/2024 - 03/04/2024"),
    ("german", "03.04.2024"),
    ("german", "vom 01.02.2024 bis 03.04.2025"),
    ("german", "03.04.2024 12:30 Uhr"),
    ("french", "01 02 2024"),
    ("english", "UTC+0200 and GMT+01:00"),
    ("english", "1700000000 or 1700000000000"),
    ("english", "1700000000000000000"),
    ("english", "20240115103000"),
    ("english", "1989-2024, 2010-2019"),
    ("english", "0930-1745 Monday"),
    # numbers of books, orders, things
    ("english", "ISBN 978-3-16-148410-0"),
    ("english", "ISBN 0-306-40615-2"),
    ("english", "978-0-13-468599-1"),
    ("english", "ISSN 2049-3630"),
    ("english", "doi:10.1000/182"),
    ("english", "arXiv:2401.01234v2"),
    ("english", "Order 415-555-2671"),
    ("english", "order number: 4111111111111111"),
    ("english", "Tracking no. 4242 4242 4242 4242"),
    ("english", "Invoice #020 7946 0958"),
    ("english", "part 123-45-6789"),
    ("english", "case no. 415-555-2671"),
    ("english", "SKU 0412 345 678"),
    ("english", "Serial: 0171-1234567"),
    ("english", "EAN 4006381333931"),
    ("english", "UPC 036000291452"),
    ("english", "IMEI 490154203237518"),
    ("english", "Patent US 10,123,456"),
    ("english", "RFC 2822, ISO 27001:2022"),
    ("german", "Bestellnummer 0171 1234567"),
    ("german", "Rechnung Nr. 030 901820"),
    ("german", "Kundennummer: 030 90 18 20"),
    ("french", "Facture n° 2024-0142685300"),
    ("english", "#4155552671"),
    ("english", "ticket 8675309"),
    ("english", "2125551234"),
    ("english", "4155552671 rows were read"),
    # wrong check digits, impossible numbers
    ("english", "4111 1111 1111 1112"),
    ("english", "1234 5678 9012 3456"),
    ("english", "0000 0000 0000 0000"),
    ("english", "4444 4444 4444 4444"),
    ("english", "41 11 11 11 11 11 11 11"),
    ("english", "4111-1111 1111-1111"),
    ("english", "9999 8888 7777 6666"),
    ("german", "DE89 3704 0044 0532 0130 01"),
    ("english", "GB00WEST12345698765432"),
    ("english", "ZZ12ABCD123456789012"),
    ("english", "AB12 CDEF GHIJ KLMN"),
    ("english", "000-12-3456"),
    ("english", "666-45-6789"),
    ("english", "900-45-6789"),
    ("english", "078-05-1120"),
    ("portuguese", "390.533.447-06"),
    ("german", "756.9217.0769.86"),
    ("italian", "RCCMNL83S18D969A"),
    ("finnish", "131052-308U"),
    ("spanish", "54362315A"),
    ("english", "54362315K"),
    ("english", "44051401359"),
    ("english", "111222333"),
    ("english", "36 574 261 809"),
    ("english", "+1 123 456 7890"),
    ("english", "123-456-7890"),
    ("english", "+0000 0000000"),
    ("english", "+12"),
    # amounts, measures, lists, code
    ("english", "1,234,567.89 USD"),
    ("german", "1.234.567,89 Euro"),
    ("english", "0.4111111111111111"),
    ("english", "3.14159265358979323846"),
    ("english", "1 000 000 000 people"),
    ("english", "100 200 300 400 500"),
    ("french", "01 02 03 04 05"),
    ("french", "les lignes 10 20 30 40 50"),
    ("danish", "20 30 40 50"),
    ("english", "52.520008, 13.404954"),
    ("english", "-122.4194155, 37.7749295"),
    ("english", "10-20-30-40-50"),
    ("english", "scores 415 555 2671"),
    ("english", "pages 415-555, 2671"),
    ("english", "x = 4155552671 + 020"),
    ("english", "https://example.com/items/4111111111111111"),
    ("english", "https://example.com/p/415-555-2671"),
    ("english", "www.example.com/020-7946-0958"),
    ("english", "diff +1234567 lines"),
    ("english", "97,5 % von 030 901820,50"),
    ("english", "1 2 3 4 5 6 7 8 9 10 11 12"),
    ("english", "| 0.10 | 0.20 | 0.30 | 0.40 |"),
    ("english", "port 5432, 6379, 8008, 11434"),
]


def kinds(text: str, language: str = "english", **options: bool) -> list[str]:
    return [one.kind for one in Recognizer(language, **options).find(text)]


@pytest.mark.parametrize(("kind", "language", "text"), POSITIVES)
def test_personal_data_is_found(kind: str, language: str, text: str) -> None:
    assert kinds(text, language) == [kind]


@pytest.mark.parametrize(("language", "text"), NEGATIVES)
def test_what_only_looks_like_it_is_not(language: str, text: str) -> None:
    assert kinds(text, language) == []


def test_code_holds_numbers_that_nobody_calls() -> None:
    assert kinds("x = (415) 555-2671", is_code=True) == []
    assert kinds("# call +1 415 555 2671", is_code=True) == ["phone"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("415-555-2671 415-555-2672", ["4155552671", "4155552672"]),
        ("+49 30 901820 rooms 12", ["4930901820"]),
        ("+1 415 555 2671 12 items", ["4155552671"]),
        ("Bonn 53111 030 901820", ["4930901820"]),
        ("Tel. 030 901820, Fax 030 901821", ["4930901820", "4930901821"]),
    ],
)
def test_numbers_side_by_side(text: str, expected: list[str]) -> None:
    found = Recognizer("german" if "030" in text else "english").find(text)
    assert [one.value.removeprefix("+").removeprefix("1") for one in found] == expected


# --- what follows ---------------------------------------------------------------------------------

FIRST = "# Ann Lee\n\nann@lee.net, again ANN@LEE.net, +1 415 555 2671."
SECOND = "Card 4242 4242 4242 4242.\nThe end."
LETTER = ParsedDocument(
    text=f"{FIRST}\n\n{SECOND}",
    title="Ann Lee (ann@lee.net)",
    media_type="text/plain",
    pages=(
        Page(1, 0, len(FIRST)),
        Page(2, len(FIRST) + 2, len(FIRST) + 2 + len(SECOND)),
    ),
    metadata={"author": "bob@lee.net", "tags": ["a", "tel. 415-555-2671"], "year": 2024},
    warnings=("the attachment ann@lee.net.zip was left out",),
    outline=(Section(0, 1, "a"), Section(len(FIRST) + 2, 1, "b")),
)
COUNTS = {"email": 3, "phone": 1, "card": 1}


def judged(policy: PersonalDataPolicy, **given: Any) -> tuple[ParsedDocument, Any]:
    return scan(LETTER, given, policy)


def test_off_looks_at_nothing() -> None:
    parsed, given = judged("off", sender="ann@lee.net")
    assert parsed is LETTER
    assert given == {"sender": "ann@lee.net"}


def test_report_counts_different_values_and_changes_nothing_else() -> None:
    parsed, given = judged("report", sender="cy@lee.net")
    assert parsed.personal_data == {**COUNTS, "email": 4}
    assert (parsed.text, parsed.title, parsed.pages) == (LETTER.text, LETTER.title, LETTER.pages)
    assert (parsed.metadata, given) == (LETTER.metadata, {"sender": "cy@lee.net"})


def test_mask_leaves_nothing_anywhere_and_every_offset_right() -> None:
    parsed, given = judged("mask", sender={"at": ["cy@lee.net"]}, count=3)
    assert parsed.personal_data == {**COUNTS, "email": 4}
    assert "@" not in repr((parsed, given))
    assert "2671" not in repr(parsed)
    assert "4242" not in repr(parsed)
    assert parsed.title == "Ann Lee ([e-mail address])"
    assert parsed.metadata == {
        "author": "[e-mail address]",
        "tags": ["a", "tel. [phone number]"],
        "year": 2024,
    }
    assert given == {"sender": {"at": ["[e-mail address]"]}, "count": 3}
    first, second = (parsed.text[page.start : page.end] for page in parsed.pages)
    assert first == ("# Ann Lee\n\n[e-mail address], again [e-mail address], [phone number].")
    assert second == "Card [card number].\nThe end."
    assert parsed.text[parsed.outline[1].start :] == second


@pytest.mark.parametrize("place", [8, 15, 20])
def test_a_page_may_end_within_what_is_masked(place: int) -> None:
    text = "Call +1 415 555 2671 at noon, or ann@lee.net. The end."
    pages = (
        Page(1, 0, place),
        Page(2, place, 30, reads_on=True),
        Page(3, 30, len(text), reads_on=True),
    )
    letter = replace(LETTER, text=text, pages=pages, outline=())
    parsed, _ = scan(letter, {}, "mask")
    assert parsed.text == "Call [phone number] at noon, or [e-mail address]. The end."
    first, second, third = parsed.pages
    assert first.start == 0
    assert len("Call ") < first.end == second.start <= len("Call [phone number]")
    assert parsed.text[second.end : third.end] == "or [e-mail address]. The end."


def test_refuse_names_kinds_and_counts_and_no_value() -> None:
    with pytest.raises(PersonalDataRefused) as refused:
        judged("refuse")
    assert refused.value.counts == COUNTS
    assert refused.value.reason.endswith("3 e-mail addresses, 1 phone number, 1 card number")
    assert "lee" not in refused.value.reason


def test_refuse_takes_what_holds_nothing() -> None:
    clean = ParsedDocument(text="Nobody is named.", title="Clean", media_type="text/plain")
    assert scan(clean, {}, "refuse")[0].personal_data == {}


def test_without_the_extra_nothing_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(ScanUnavailable, match="cannot be scanned") as missing:
        judged("mask")
    assert "footnote[pii]" in missing.value.hint
    assert judged("off")[0] is LETTER


# --- time -----------------------------------------------------------------------------------------

HOSTILE_CHARS = 2_000_000
HOSTILE = [
    "1", "a@", "@", "a.", "1-", "1 ", "+1", "DE89", "DE89 ", "AB12 ", "(", "0 ", "A", "a@b.", "a-",
    "4111 1111 1111 1112 ", "x@y-", "http://0301-", "tel ", "123-45-678",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_texts_take_linear_time(piece: str) -> None:
    """Ten times the text may take ten times as long, not a hundred times."""
    recognizer = Recognizer("english")

    def seconds(chars: int) -> float:
        text = piece * (chars // len(piece))
        started = time.process_time()
        recognizer.find(text)
        return time.process_time() - started

    small = max(seconds(HOSTILE_CHARS // 100), 0.002)
    assert seconds(HOSTILE_CHARS // 10) < 30 * small


def test_two_megabytes_without_anything_take_seconds() -> None:
    text = "The quick brown fox paid 12.50 on 2024-01-15 for 3 of 10 hens. " * (HOSTILE_CHARS // 64)
    started = time.process_time()
    assert Recognizer("english").find(text) == []
    assert time.process_time() - started < 10


def test_more_numbers_than_can_be_judged_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingestion.recognition.recognizer._NUMBERS_MAX", 50)
    numbers = " ".join(f"020 7946 0{number:03}," for number in range(100))
    with pytest.raises(DocumentRejected, match="too many numbers"):
        kinds(numbers)
