"""Small documents made here, so that the tests need no files."""

import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape

_XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_COMPATIBILITY = "http://schemas.openxmlformats.org/markup-compatibility/2006"
_SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_SLIDE = "http://schemas.openxmlformats.org/presentationml/2006/main"
_DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
_MIME = "application/vnd.openxmlformats-officedocument"


def zipped(members: Mapping[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def docx(body: str, title: str = "", extra: Mapping[str, str] | None = None) -> bytes:
    """A Word document around `body`, which is WordprocessingML; see `paragraph` and `table`."""
    core = (
        f'{_XML}<cp:coreProperties xmlns:cp="{_PACKAGE}/metadata/core-properties"'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<dc:title>{escape(title)}</dc:title></cp:coreProperties>"
    )
    styles = (
        f'{_XML}<w:styles xmlns:w="{_WORD}">'
        '<w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style>'
        '<w:style w:type="paragraph" w:styleId="Heading2"><w:name w:val="heading 2"/></w:style>'
        "</w:styles>"
    )
    return zipped(
        {
            "[Content_Types].xml": _content_types(
                {
                    "/word/document.xml": f"{_MIME}.wordprocessingml.document.main+xml",
                    "/word/styles.xml": f"{_MIME}.wordprocessingml.styles+xml",
                    "/docProps/core.xml": "application/vnd.openxmlformats-package"
                    ".core-properties+xml",
                }
            ),
            "_rels/.rels": _relationships(
                {
                    f"{_OFFICE}/officeDocument": "word/document.xml",
                    f"{_PACKAGE}/relationships/metadata/core-properties": "docProps/core.xml",
                }
            ),
            "word/_rels/document.xml.rels": _relationships({f"{_OFFICE}/styles": "styles.xml"}),
            "word/document.xml": (
                f'{_XML}<w:document xmlns:w="{_WORD}" xmlns:mc="{_COMPATIBILITY}">'
                f"<w:body>{body}</w:body></w:document>"
            ),
            "word/styles.xml": styles,
            "docProps/core.xml": core,
            **(extra or {}),
        }
    )


def paragraph(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{escape(text)}</w:t></w:r></w:p>"


def table(rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str]) -> str:
        return "<w:tr>" + "".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in cells) + "</w:tr>"

    return "<w:tbl>" + "".join(map(row, rows)) + "</w:tbl>"


def xlsx(name: str, rows: Iterable[Sequence[str]]) -> bytes:
    def cell(text: str, column: int, line: int) -> str:
        reference = f"{chr(ord('A') + column)}{line}"
        return f'<c r="{reference}" t="inlineStr"><is><t>{escape(text)}</t></is></c>'

    data = "".join(
        f'<row r="{line}">'
        + "".join(cell(text, column, line) for column, text in enumerate(cells))
        + "</row>"
        for line, cells in enumerate(rows, 1)
    )
    return sheet_of(data, name)


def sheet_of(data: str, name: str = "Sheet") -> bytes:
    """A workbook of one sheet around `data`, its rows in SpreadsheetML."""
    return zipped(
        {
            "[Content_Types].xml": _content_types(
                {
                    "/xl/workbook.xml": f"{_MIME}.spreadsheetml.sheet.main+xml",
                    "/xl/worksheets/sheet1.xml": f"{_MIME}.spreadsheetml.worksheet+xml",
                }
            ),
            "_rels/.rels": _relationships({f"{_OFFICE}/officeDocument": "xl/workbook.xml"}),
            "xl/_rels/workbook.xml.rels": _relationships(
                {f"{_OFFICE}/worksheet": "worksheets/sheet1.xml"}
            ),
            "xl/workbook.xml": (
                f'{_XML}<workbook xmlns="{_SHEET}" xmlns:r="{_OFFICE}"><sheets>'
                f'<sheet name="{escape(name)}" sheetId="1" r:id="r1"/></sheets></workbook>'
            ),
            "xl/worksheets/sheet1.xml": (
                f'{_XML}<worksheet xmlns="{_SHEET}"><sheetData>{data}</sheetData></worksheet>'
            ),
        }
    )


def pptx(slides: Sequence[tuple[str, str]]) -> bytes:
    """Slides of a title and a text."""

    def shape(number: int, kind: str, text: str) -> str:
        return (
            f'<p:sp><p:nvSpPr><p:cNvPr id="{number}" name="{kind}"/><p:cNvSpPr/>'
            f'<p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr><p:spPr/>'
            f"<p:txBody><a:bodyPr/><a:p><a:r><a:t>{escape(text)}</a:t></a:r></a:p></p:txBody></p:sp>"
        )

    spaces = f'xmlns:p="{_SLIDE}" xmlns:a="{_DRAWING}" xmlns:r="{_OFFICE}"'
    names = [f"slides/slide{number}.xml" for number in range(1, len(slides) + 1)]
    members: dict[str, bytes | str] = {
        "[Content_Types].xml": _content_types(
            {
                "/ppt/presentation.xml": f"{_MIME}.presentationml.presentation.main+xml",
                **{f"/ppt/{name}": f"{_MIME}.presentationml.slide+xml" for name in names},
            }
        ),
        "_rels/.rels": _relationships({f"{_OFFICE}/officeDocument": "ppt/presentation.xml"}),
        "ppt/_rels/presentation.xml.rels": _xml_relationships(
            (f"r{number}", f"{_OFFICE}/slide", name) for number, name in enumerate(names, 1)
        ),
        "ppt/presentation.xml": (
            f"{_XML}<p:presentation {spaces}><p:sldIdLst>"
            + "".join(f'<p:sldId id="{255 + n}" r:id="r{n}"/>' for n in range(1, len(names) + 1))
            + "</p:sldIdLst></p:presentation>"
        ),
    }
    for name, (title, text) in zip(names, slides, strict=True):
        members[f"ppt/{name}"] = (
            f"{_XML}<p:sld {spaces}><p:cSld><p:spTree>"
            f"{shape(2, 'title', title)}{shape(3, 'body', text)}"
            "</p:spTree></p:cSld></p:sld>"
        )
    return zipped(members)


def _content_types(overrides: Mapping[str, str]) -> str:
    parts = "".join(
        f'<Override PartName="{part}" ContentType="{kind}"/>' for part, kind in overrides.items()
    )
    return (
        f'{_XML}<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Default Extension="xml" ContentType="application/xml"/>{parts}</Types>'
    )


def _relationships(targets: Mapping[str, str]) -> str:
    return _xml_relationships(
        (f"r{number}", kind, target) for number, (kind, target) in enumerate(targets.items(), 1)
    )


def _xml_relationships(relations: Iterable[tuple[str, str, str]]) -> str:
    links = "".join(
        f'<Relationship Id="{name}" Type="{kind}" Target="{target}"/>'
        for name, kind, target in relations
    )
    return f'{_XML}<Relationships xmlns="{_PACKAGE}/relationships">{links}</Relationships>'


def pdf(pages: Sequence[Sequence[str]], title: str = "", large: Iterable[str] = ()) -> bytes:
    """A PDF of lines per page, those in `large` in a larger and bolder type."""
    streams = [_page_stream(lines, set(large)) for lines in pages]
    return pdf_of_streams(streams, title)


def _page_stream(lines: Sequence[str], large: set[str]) -> bytes:
    shown = [b"BT 50 750 Td 14 TL"]
    for line in lines:
        text = line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        font = b"/F2 20 Tf" if line in large else b"/F1 11 Tf"
        shown.append(b"%b (%b) Tj T* T*" % (font, text.encode("cp1252")))
    return b"\n".join([*shown, b"ET"])


def pdf_of_streams(streams: Sequence[bytes], title: str = "") -> bytes:
    """One page per content stream."""
    kids = " ".join(f"{6 + 2 * index} 0 R" for index in range(len(streams)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(streams)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold /Encoding /WinAnsiEncoding >>",
        b"<< /Title (%b) >>" % title.encode("cp1252"),
    ]
    for index, stream in enumerate(streams):
        packed = zlib.compress(stream, 9)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R"
            b" /Resources << /Font << /F1 3 0 R /F2 4 0 R >> >> >>" % (7 + 2 * index)
        )
        objects.append(
            b"<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream" % (len(packed), packed)
        )
    content = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"
    offsets: list[int] = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(content))
        content += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return content + (
        b"xref\n0 %d\n0000000000 65535 f \n%btrailer << /Size %d /Root 1 0 R /Info 5 0 R >>\n"
        b"startxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table, len(objects) + 1, len(content))
    )


def mail(headers: Mapping[str, str], body: str) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", *body.split("\n")]).encode()
