"""Documents of the common formats: their text, tables, pages, titles and metadata."""

import bz2
import gzip
import io
import lzma
import tarfile
from email.message import EmailMessage

import pytest

from app.errors import DocumentRejected
from ingestion.parsing.documents import parse_document
from ingestion.types import ParsedDocument
from tests import samples

BODY = [
    f"Line {n} of a paragraph that is long enough to be taken for running text" for n in range(8)
]


def page_texts(parsed: ParsedDocument) -> list[str]:
    assert [page.number for page in parsed.pages] == list(range(1, len(parsed.pages) + 1))
    return [parsed.text[page.start : page.end] for page in parsed.pages]


def test_word_gives_headings_tables_and_its_title() -> None:
    body = (
        samples.paragraph("Holidays", "Heading1")
        + samples.paragraph("Everyone has 30 days & more_or_less.")
        + samples.table([["Country", "Days"], ["Spain", "30"]])
    )
    parsed = parse_document(samples.docx(body, title="Leave policy"), "leave.docx")
    assert parsed.title == "Leave policy"
    assert "Holidays\n\nEveryone has 30 days & more_or_less." in parsed.text
    assert "| Country | Days |\n| --- | --- |\n| Spain | 30 |" in parsed.text
    assert parsed.text.startswith("#")
    assert parsed.markup == "markdown"


def test_word_without_a_title_of_its_own_takes_its_first_heading() -> None:
    document = samples.docx(samples.paragraph("Holidays", "Heading1"), title="Document1")
    assert parse_document(document, "leave.docx").title == "Holidays"


def test_word_keeps_what_its_converter_would_lose() -> None:
    note = "word/footnotes.xml"
    body = (
        "<w:p><w:r><mc:AlternateContent><mc:Choice><w:txbxContent>"
        + samples.paragraph("In a box.")
        + "</w:txbxContent></mc:Choice><mc:Fallback>twice</mc:Fallback></mc:AlternateContent></w:r>"
        '<w:r><w:t>Around</w:t><w:tab/><w:t>the box</w:t><w:footnoteReference w:id="4"/>'
        "<w:t>, day</w:t><w:noBreakHyphen/><w:t>to-day: R&amp;D &lt; 5 &#8364;.</w:t></w:r></w:p>"
    )
    notes = (
        '<w:footnotes><w:footnote w:type="separator" w:id="0"/>'
        '<w:footnote w:id="4"><w:p><w:r><w:t>As of A&amp;B.</w:t></w:r></w:p></w:footnote>'
        "</w:footnotes>"
    )
    parsed = parse_document(samples.docx(body, extra={note: notes}), "a.docx")
    assert parsed.text == (
        "Around the box[^1], day-to-day: R&D < 5 €.\n\nIn a box.\n\n[^1]: As of A&B."
    )


def test_a_workbook_gives_a_table_under_the_name_of_its_sheet() -> None:
    parsed = parse_document(samples.xlsx("Budget", [["Item", "Cost"], ["Chairs", "100"]]), "b.xlsx")
    assert parsed.text == "## Budget\n\n| Item | Cost |\n| --- | --- |\n| Chairs | 100 |"
    assert parsed.title == "b"
    assert parsed.metadata == {"sheet_names": ["Budget"]}


def test_slides_are_pages() -> None:
    slides = [("Welcome", "Hello **all**"), ("Plan", "First this, then that")]
    parsed = parse_document(samples.pptx(slides), "talk.pptx")
    assert page_texts(parsed) == [
        "## Welcome\n\nHello **all**",
        "## Plan\n\nFirst this, then that",
    ]
    assert parsed.title == "Welcome"


def test_pdf_pages_are_exact_and_their_lines_read_on() -> None:
    pages = [["Annual Report", *BODY, "The end."], ["The second page (and last)."]]
    parsed = parse_document(samples.pdf(pages, title="Report 2024"), "r.pdf")
    first, second = page_texts(parsed)
    assert "running text Line 1 of a paragraph" in first
    assert first.endswith("The end.")
    assert second == "The second page (and last)."
    assert parsed.title == "Report 2024"


def test_pdf_headings_are_found_and_name_the_document() -> None:
    pages = [["Annual Report", *BODY, "The end."], ["Outlook", *BODY, "Fin."]]
    content = samples.pdf(pages, title="untitled", large=["Annual Report", "Outlook"])
    parsed = parse_document(content, "r.pdf")
    assert parsed.text.startswith("# Annual Report\n\nLine 0")
    assert "# Outlook\n\nLine 0" in parsed.text
    assert parsed.title == "Annual Report"


def test_pdf_lines_that_only_look_like_headings_do_not_become_some() -> None:
    parsed = parse_document(samples.pdf([["# 7 of them", *BODY, "Total", "====="]]), "r.pdf")
    assert parsed.text.startswith("\\# 7 of them")
    assert "Total\n\n===" in parsed.text


def test_running_headers_are_kept_only_once_and_page_numbers_not_at_all() -> None:
    pages = [["ACME Handbook", f"Topic {n}: {'abc'[n]}", "More.", f"Page {n}"] for n in range(3)]
    text = parse_document(samples.pdf(pages), "h.pdf").text
    assert text.count("ACME Handbook") == 1
    assert "Page" not in text
    assert all(f"Topic {n}" in text for n in range(3))


def test_the_dots_of_a_table_of_contents_are_cut_short() -> None:
    text = parse_document(
        samples.pdf([["Intro . . . . . . . . . 3", "Plan.......7"]]), "c.pdf"
    ).text
    assert text == "Intro ... 3\nPlan...7"


def test_a_pdf_says_how_many_pages_may_be_scans() -> None:
    parsed = parse_document(samples.pdf([["Text here."], []]), "mixed.pdf")
    assert parsed.warnings == ("1 of its 2 pages have no text: scanned, or empty",)
    assert page_texts(parsed) == ["Text here.", ""]


def test_html_gives_markdown_without_its_head_and_its_code() -> None:
    page = """<!DOCTYPE html><html><head><title>Leave &amp; more</title>
    <meta name="description" content="hidden"><style>p {color: red}</style></head>
    <body><script>alert(1)</script><h1>Holidays</h1><p>Thirty <b>days</b>, see
    <a href="/local">here</a> and <a href="https://example.com/x">there</a>.</p>
    <img alt="" src="data:image/png;base64,AAAA"><ul><li>Spain</li></ul>
    <table><tr><th>Country</th><th>Days</th></tr><tr><td>Spain</td><td>30</td></tr></table>
    </body></html>"""
    parsed = parse_document(page.encode(), "leave.html")
    assert parsed.title == "Leave & more"
    assert parsed.text.startswith("# Holidays\n\nThirty **days**, see")
    assert "here and [there](https://example.com/x)" in parsed.text
    assert "- Spain" in parsed.text
    assert "| Country | Days |\n| --- | --- |\n| Spain | 30 |" in parsed.text
    for absent in ("hidden", "color", "alert", "base64", "&amp;"):
        assert absent not in parsed.text


@pytest.mark.parametrize("encoding", ["iso-8859-1", "utf-8", "utf-16"])
def test_html_is_read_in_the_encoding_that_it_declares(encoding: str) -> None:
    page = f'<html><meta charset="{encoding}"><p>Fünf Öfen für Käse</p></html>'
    parsed = parse_document(page.encode(encoding), "a.html")
    assert parsed.text == "Fünf Öfen für Käse"


def test_a_layout_table_of_one_column_is_no_table() -> None:
    page = "<table><tr><td>First line.</td></tr><tr><td>Second line.</td></tr></table>"
    text = parse_document(page.encode(), "a.html").text
    assert "|" not in text
    assert "First line." in text
    assert "Second line." in text


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_is_a_table_whatever_parts_its_cells(delimiter: str) -> None:
    rows = [["Name", "Note"], ["Ann", "says: a; b"], ["Bob", "two\nlines"], ["Cy", ""]]
    quoted = [[f'"{cell}"' for cell in row] for row in rows]
    content = "\r\n".join(delimiter.join(row) for row in quoted).encode()
    assert parse_document(content, "people.csv").text == (
        "| Name | Note |\n| --- | --- |\n| Ann | says: a; b |\n| Bob | two lines |\n| Cy |  |"
    )


def test_csv_of_one_column_is_a_list_of_lines() -> None:
    text = "first\nsecond, with a comma\nthird\nfourth\n"
    assert parse_document(text.encode(), "list.csv").text == text


def test_xml_gives_its_text_in_its_own_encoding() -> None:
    content = '<?xml version="1.0" encoding="utf-16"?><book><title>Käse</title></book>'
    parsed = parse_document(content.encode("utf-16"), "book.xml")
    assert "Käse" in parsed.text
    assert parsed.title == "book"


def test_a_notebook_gives_its_cells() -> None:
    notebook = """{"nbformat": 4, "nbformat_minor": 5,
        "metadata": {"language_info": {"name": "python"}}, "cells": [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Study\\n", "Of trees."]},
        {"cell_type": "code", "metadata": {}, "execution_count": null,
         "source": ["plant(3)\\n", "# to be seen"], "outputs": [
            {"output_type": "stream", "text": ["# grown\\n", "```"]},
            {"output_type": "execute_result", "data": {"text/plain": "42", "image/png": "AA"}}]}]}"""
    parsed = parse_document(notebook.encode(), "study.ipynb")
    assert parsed.title == "Study"
    assert parsed.metadata == {"language": "python"}
    assert parsed.text == (
        "# Study\nOf trees.\n\n```python\nplant(3)\n# to be seen\n```\n\n"
        "````\n# grown\n```\n````\n\n```\n42\n```"
    )


def test_mail_gives_headers_body_and_metadata() -> None:
    content = samples.mail(
        {
            "Subject": "=?utf-8?q?Caf=C3=A9?= plans",
            "From": "Ann <ann@example.com>",
            "To": "bob@example.com, Cy <cy@example.com>",
            "Date": "Mon, 5 Feb 2024 10:00:00 +0100",
            "Message-ID": "<1@example.com>",
            "X-Secret": "not shown",
        },
        "Hello,\n\n# not a heading\n\n-- \nAnn",
    )
    parsed = parse_document(content, "plan.eml")
    assert parsed.title == "Café plans"
    assert parsed.text == (
        "Subject: Café plans\nFrom: Ann <ann@example.com>\n"
        "To: bob@example.com, Cy <cy@example.com>\nDate: Mon, 5 Feb 2024 10:00:00 +0100\n\n"
        "Hello,\n\n\\# not a heading\n\n-- \nAnn"
    )
    assert parsed.metadata == {
        "subject": "Café plans",
        "from_email": "ann@example.com",
        "to_emails": ["bob@example.com", "cy@example.com"],
        "message_id": "<1@example.com>",
        "created_at": "2024-02-05T10:00:00+01:00",
    }


def test_of_alternatives_the_plain_one_is_read_and_html_where_there_is_no_other() -> None:
    def alternatives(*parts: tuple[str, str]) -> bytes:
        body = "".join(f"--b\nContent-Type: {kind}\n\n{text}\n" for kind, text in parts)
        return samples.mail(
            {"Subject": "Hi", "Content-Type": "multipart/alternative; boundary=b"}, body + "--b--"
        )

    html = ("text/html", "<p>From <b>HTML</b></p>")
    both = parse_document(alternatives(("text/plain", "From text"), html), "a.eml").text
    assert both == "Subject: Hi\n\nFrom text"
    alone = parse_document(alternatives(html), "a.eml").text
    assert alone == "Subject: Hi\n\nFrom **HTML**"


def test_attachments_are_read_under_their_names() -> None:
    def attachment(name: str, text: str) -> str:
        return f'--b\nContent-Disposition: attachment; filename="{name}"\n\n{text}\n'

    body = "--b\n\nSee attached.\n" + attachment("notes.md", "# Notes\n\nBuy milk.")
    body += attachment("tool.exe", "MZ") + attachment("run.py", "# comment\nrun()") + "--b--"
    content = samples.mail({"Subject": "Hi", "Content-Type": "multipart/mixed; boundary=b"}, body)
    parsed = parse_document(content, "a.eml")
    assert "See attached.\n\n# notes.md\n\n## Notes\n\nBuy milk." in parsed.text
    assert "# run.py\n\n~~~~~~\n# comment\nrun()\n~~~~~~" in parsed.text
    assert parsed.metadata["attachments"] == ["notes.md", "tool.exe", "run.py"]
    assert parsed.warnings == ("tool.exe: not a supported format (a program)",)


def test_a_mailbox_holds_its_messages_one_after_the_other() -> None:
    messages = [samples.mail({"Subject": f"Mail {n}"}, f"Body {n}") for n in (1, 2)]
    content = b"".join(b"From ann@example.com Mon Feb  5\n" + each + b"\n\n" for each in messages)
    text = parse_document(content, "old.mbox").text
    assert "# Mail 1\n\nSubject: Mail 1\n\nBody 1" in text
    assert "# Mail 2\n\nSubject: Mail 2\n\nBody 2" in text


def tar_of(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("a.zip", samples.zipped({"docs/a.md": "# A\n\nText.", "__MACOSX/x": "noise"})),
        ("a.tar", tar_of("docs/a.md", b"# A\n\nText.")),
        ("a.tgz", gzip.compress(tar_of("docs/a.md", b"# A\n\nText."))),
        ("a.tar.bz2", bz2.compress(tar_of("docs/a.md", b"# A\n\nText."))),
        ("a.tar.xz", lzma.compress(tar_of("docs/a.md", b"# A\n\nText."))),
    ],
)
def test_an_archive_gives_its_files_under_their_names(filename: str, content: bytes) -> None:
    parsed = parse_document(content, filename)
    assert parsed.text == "# docs/a.md\n\n## A\n\nText."
    assert parsed.warnings == ()


def test_a_compressed_file_is_the_file() -> None:
    parsed = parse_document(gzip.compress(b"# A\n\nText."), "notes.md.gz")
    assert parsed.text == "# A\n\nText."
    assert parsed.title == "A"


def test_an_archive_names_the_files_that_it_could_not_read() -> None:
    content = samples.zipped({"a.txt": "text", "b.pdf": b"\1\2\3" * 50, "c.txt": ""})
    parsed = parse_document(content, "a.zip")
    assert parsed.text == "# a.txt\n\ntext"
    assert parsed.warnings == (
        "b.pdf: damaged: it cannot be read as a PDF",
        "c.txt: the file is empty",
    )


def test_files_that_could_not_be_read_are_named_however_deep_they_lie() -> None:
    scanned = samples.pdf([["Text here."], []])
    within = samples.zipped({"a.txt": "text", "b.pdf": b"\1\2\3" * 50, "c.pdf": scanned})
    outer = samples.zipped({"in.zip": within})
    pages = "1 of its 2 pages have no text: scanned, or empty"
    named = ("in.zip/b.pdf: damaged: it cannot be read as a PDF", f"in.zip/c.pdf: {pages}")
    assert parse_document(outer, "out.zip").warnings == named
    mail = EmailMessage()
    mail["Subject"] = "Files"
    mail.set_content("Here they are.")
    mail.add_attachment(within, maintype="application", subtype="zip", filename="in.zip")
    assert parse_document(mail.as_bytes(), "a.eml").warnings == named
    archived = samples.zipped({"a.eml": mail.as_bytes(), "in.tgz": gzip.compress(tar_of("b", b""))})
    assert parse_document(archived, "out.zip").warnings == (
        *(f"a.eml/{one}" for one in named),
        "in.tgz: none of its files could be read (the file is empty)",
    )


def test_an_office_document_under_another_office_name_is_read_as_what_it_is() -> None:
    parsed = parse_document(samples.docx(samples.paragraph("Hello")), "old.doc")
    assert parsed.text == "Hello"
    assert parsed.warnings == (
        "its name says an old Word document (.doc); it was read as a Word document",
    )
    assert parse_document(b"<html><p>Hello</p></html>", "export.xls").text == "Hello"


@pytest.mark.parametrize(
    ("filename", "content", "reason"),
    [
        ("a.txt", samples.pdf([["x"]]), "its name says plain text, but its content is a PDF"),
        ("a.md", samples.zipped({"x": "y"}),
         "its name says Markdown, but its content is a ZIP archive"),
        ("a.pdf", b"<html>not found</html>",
         "its name says a PDF, but its content is an HTML page"),
        ("a.pdf", samples.docx(""), "its name says a PDF, but its content is a Word document"),
        ("a.docx", samples.pdf([["x"]]),
         "its name says a Word document, but its content is a PDF"),
        ("a.png", b"\x7fELF" + bytes(60), "its name says a PNG image, but its content is a program"),
        ("a.jpg", b"just text", "its name says a JPEG image, but its content is plain text"),
        ("setup.exe", b"\x7fELF" + bytes(60), "not a supported format (a program)"),
        ("tool", b"\x7fELF" + bytes(60), "not a supported format (a program)"),
        ("song.mp3", b"ID3" + bytes(60), "not a supported format (a sound file)"),
        ("a.one", b"\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d" + bytes(60),
         "not a supported format (a OneNote notebook)"),
        ("a.pdf", b"\1\2\3" * 50, "damaged: it cannot be read as a PDF"),
        ("a.pdf", b"%PDF-1.7\ngarbage", "damaged: it cannot be read as a PDF"),
        ("a.docx", samples.docx("")[:-40], "damaged: it cannot be read as a Word document"),
        ("a.zip", b"PK\x03\x04garbage", "damaged: it cannot be read as a ZIP archive"),
        ("a.gz", b"\x1f\x8bgarbage", "damaged: it cannot be read as a gzip file"),
        ("a.tar", b"text", "damaged: it cannot be read as a tar archive"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
         + "EncryptedPackage".encode("utf-16-le"), "encrypted: a password is needed"),
        ("a.odt", samples.zipped({"mimetype": "application/vnd.oasis.opendocument.text",
                                  "META-INF/manifest.xml": "<manifest:encryption-data/>"}),
         "encrypted: a password is needed"),
        ("a.docx", samples.docx(""), "no text was found in it"),
        ("a.html", b"<html><body></body></html>", "no text was found in it"),
        ("a.csv", b",,,\n,,,\n", "the table is empty"),
        ("a.zip", samples.zipped({}), "it holds no files"),
        ("a.zip", samples.zipped({"a.exe": "MZ"}),
         "none of its files could be read (not a supported format (a program))"),
        ("a.eml", b"X-Nothing: here\n\n",
         "it is an e-mail without subject, text or readable attachment"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_words(
    filename: str, content: bytes, reason: str
) -> None:
    with pytest.raises(DocumentRejected) as caught:
        parse_document(content, filename)
    assert caught.value.reason == reason
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "text", ["%PDF-1.7 is how they begin", "ID3 tags\n", "BZh and GIF89a", "PK is short for"]
)
def test_a_text_about_formats_is_a_text(text: str) -> None:
    for filename in ("notes", "a.txt" if not text.startswith("%PDF") else "notes.unknown"):
        assert parse_document(f"About: {text}".encode(), filename).text == f"About: {text}"
