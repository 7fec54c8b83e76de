"""The formats that Footnote knows, and the names that files of each have."""

from dataclasses import dataclass
from enum import Enum, auto

from ingestion.types import Markup


class Reader(Enum):
    """Which part of the parser makes text of a format."""

    TEXT = auto()
    HTML = auto()
    PDF = auto()
    SLIDES = auto()
    TABLE = auto()
    CONVERTED_TEXT = auto()
    """Text that kreuzberg converts: XML, LaTeX."""
    NOTEBOOK = auto()
    CONVERTED = auto()
    """Everything else that kreuzberg converts."""
    LINES = auto()
    """What kreuzberg converts well only line by line."""
    IMAGE = auto()
    MAIL = auto()
    OUTLOOK = auto()
    MAILBOX = auto()
    ARCHIVE = auto()
    NONE = auto()


class Family(Enum):
    """A file may have another format of the family that its name promises, without harm."""

    TEXT = auto()
    OFFICE = auto()
    PDF = auto()
    IMAGE = auto()
    ARCHIVE = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Format:
    """`name` is what people call it, with its article."""

    media_type: str
    name: str
    reader: Reader
    family: Family
    markup: Markup = "markdown"


def _text(media_type: str, name: str, markup: Markup) -> Format:
    return Format(media_type, name, Reader.TEXT, Family.TEXT, markup)


def _converted(media_type: str, name: str) -> Format:
    return Format(media_type, name, Reader.CONVERTED_TEXT, Family.TEXT)


def _office(media_type: str, name: str, reader: Reader = Reader.CONVERTED) -> Format:
    return Format(media_type, name, reader, Family.OFFICE)


def _image(media_type: str, name: str) -> Format:
    return Format(media_type, name, Reader.IMAGE, Family.IMAGE)


def _archive(media_type: str, name: str) -> Format:
    return Format(media_type, name, Reader.ARCHIVE, Family.ARCHIVE)


def _unreadable(media_type: str, name: str, family: Family = Family.OTHER) -> Format:
    return Format(media_type, name, Reader.NONE, family)


_OOXML = "application/vnd.openxmlformats-officedocument."
_ODF = "application/vnd.oasis.opendocument."

PLAIN = _text("text/plain", "plain text", "plain")
MARKDOWN = _text("text/markdown", "Markdown", "markdown")
RST = _text("text/x-rst", "reStructuredText", "rst")
ORG = _text("text/x-org", "Org text", "org")
SOURCE = _text("text/x-source-code", "source code", "code")
JSON = _text("application/json", "JSON", "code")
YAML = _text("application/yaml", "YAML", "code")
TOML = _text("application/toml", "TOML", "code")
HTML = Format("text/html", "an HTML page", Reader.HTML, Family.TEXT)
CSV = Format("text/csv", "a CSV table", Reader.TABLE, Family.TEXT)
TSV = Format("text/tab-separated-values", "a table in text", Reader.TABLE, Family.TEXT)
XML = _converted("application/xml", "XML")
DOCBOOK = _converted("application/docbook+xml", "DocBook")
FICTION_BOOK = _converted("application/x-fictionbook+xml", "a FictionBook")
LATEX = _converted("application/x-latex", "LaTeX")
TYPST = _converted("application/x-typst", "Typst")
NOTEBOOK = Format("application/x-ipynb+json", "a Jupyter notebook", Reader.NOTEBOOK, Family.TEXT)
OPML = _converted("application/xml+opml", "an OPML outline")
BIBTEX = _converted("application/x-bibtex", "a BibTeX bibliography")
RIS = _converted("application/x-research-info-systems", "a RIS bibliography")
MAIL = Format("message/rfc822", "an e-mail", Reader.MAIL, Family.TEXT)
MAILBOX = Format("application/mbox", "a mailbox", Reader.MAILBOX, Family.TEXT)

PDF = Format("application/pdf", "a PDF", Reader.PDF, Family.PDF)

RTF = _office("application/rtf", "an RTF document")
DOC = _office("application/msword", "an old Word document (.doc)", Reader.LINES)
XLS = _office("application/vnd.ms-excel", "an old Excel workbook (.xls)")
PPT = _office("application/vnd.ms-powerpoint", "an old PowerPoint presentation (.ppt)")
MSG = _office("application/vnd.ms-outlook", "an Outlook message", Reader.OUTLOOK)
DOCX = _office(f"{_OOXML}wordprocessingml.document", "a Word document")
XLSX = _office(f"{_OOXML}spreadsheetml.sheet", "an Excel workbook")
XLSB = _office("application/vnd.ms-excel.sheet.binary.macroEnabled.12", "a binary Excel workbook")
PPTX = _office(f"{_OOXML}presentationml.presentation", "a PowerPoint presentation", Reader.SLIDES)
ODT = _office(f"{_ODF}text", "an OpenDocument text")
ODS = _office(f"{_ODF}spreadsheet", "an OpenDocument spreadsheet")
ODP = _unreadable(f"{_ODF}presentation", "an OpenDocument presentation", Family.OFFICE)
EPUB = _office("application/epub+zip", "an EPUB book")
PAGES = _office("application/x-iwork-pages-sffpages", "an Apple Pages document")
NUMBERS = _office("application/x-iwork-numbers-sffnumbers", "an Apple Numbers spreadsheet")
KEYNOTE = _office("application/x-iwork-keynote-sffkey", "an Apple Keynote presentation")
HWP = _office("application/x-hwp", "a Hangul document")
HWPX = _office("application/haansofthwpx", "a Hangul document")
OLE = _unreadable("application/x-ole-storage", "an unknown Office file", Family.OFFICE)
DBF = _office("application/x-dbf", "a dBASE table")
VISIO = _unreadable("application/vnd.ms-visio.drawing", "a Visio drawing", Family.OFFICE)
XPS = _unreadable("application/vnd.ms-xpsdocument", "an XPS document", Family.OFFICE)
WORKS = _unreadable("application/vnd.ms-works", "a Microsoft Works document", Family.OFFICE)
WORDPERFECT = _unreadable("application/vnd.wordperfect", "a WordPerfect document", Family.OFFICE)
ONENOTE = _unreadable("application/onenote", "a OneNote notebook", Family.OFFICE)
OUTLOOK_DATA = Format(
    "application/vnd.ms-outlook-pst", "an Outlook data file", Reader.LINES, Family.OTHER
)

PNG = _image("image/png", "a PNG image")
JPEG = _image("image/jpeg", "a JPEG image")
GIF = _image("image/gif", "a GIF image")
TIFF = _image("image/tiff", "a TIFF image")
BMP = _image("image/bmp", "a bitmap image")
WEBP = _image("image/webp", "a WebP image")
HEIF = _unreadable("image/heif", "a HEIF image", Family.IMAGE)

ZIP = _archive("application/zip", "a ZIP archive")
TAR = _archive("application/x-tar", "a tar archive")
GZIP = _archive("application/gzip", "a gzip file")
BZIP2 = _archive("application/x-bzip2", "a bzip2 file")
XZ = _archive("application/x-xz", "an xz file")
SEVEN_ZIP = _archive("application/x-7z-compressed", "a 7z archive")
RAR = _unreadable("application/vnd.rar", "a RAR archive", Family.ARCHIVE)

PROGRAM = _unreadable("application/x-executable", "a program")
SOUND = _unreadable("audio/*", "a sound file")
VIDEO = _unreadable("video/*", "a video")
FONT = _unreadable("font/*", "a font")
DATABASE = _unreadable("application/vnd.sqlite3", "a SQLite database")
HELP = _unreadable("application/vnd.ms-htmlhelp", "a Windows help file")
SIGNED_MAIL = _unreadable("application/pkcs7-mime", "a signed or encrypted S/MIME message")
SIGNATURE = _unreadable("application/pkcs7-signature", "a digital signature")
WEB_ARCHIVE = _unreadable("application/x-safari-webarchive", "a Safari web archive")
WARC = _unreadable("application/warc", "a web crawl archive")

_EXTENSIONS: dict[Format, str] = {
    PLAIN: "txt text log srt vtt adoc asciidoc ics vcf",
    MARKDOWN: "md markdown mdown mkd mkdn mdx qmd rmd commonmark djot",
    RST: "rst rest",
    ORG: "org",
    SOURCE: (
        "py pyi js mjs cjs jsx ts mts cts tsx vue svelte java kt kts scala groovy go rs c h cc cpp cxx hpp"
        " hh m mm cs fs vb swift rb rake gemspec php pl pm lua r jl dart ex exs erl hrl hs clj cljs lisp el ml"
        " mli nim zig sol sh bash zsh fish ps1 bat cmd sql graphql proto css scss sass less xsl"
        " xslt xsd dtd tf hcl ini cfg conf properties env cmake gradle mk makefile dockerfile diff patch"
    ),
    JSON: "json jsonl ndjson geojson json5 webmanifest",
    YAML: "yaml yml",
    TOML: "toml",
    HTML: "html htm xhtml shtml",
    CSV: "csv",
    TSV: "tsv tab",
    XML: "xml rss atom jats nxml",
    DOCBOOK: "docbook dbk",
    FICTION_BOOK: "fb2",
    LATEX: "tex latex",
    TYPST: "typ",
    NOTEBOOK: "ipynb",
    OPML: "opml",
    BIBTEX: "bib",
    RIS: "ris",
    MAIL: "eml mht mhtml",
    MAILBOX: "mbox",
    PDF: "pdf",
    RTF: "rtf",
    DOC: "doc dot",
    XLS: "xls xlt xla",
    PPT: "ppt pot pps",
    MSG: "msg",
    DOCX: "docx docm dotx dotm",
    XLSX: "xlsx xlsm xltx xltm xlam",
    XLSB: "xlsb",
    PPTX: "pptx pptm ppsx ppsm potx potm",
    ODT: "odt ott",
    ODS: "ods ots",
    ODP: "odp otp",
    EPUB: "epub",
    PAGES: "pages",
    NUMBERS: "numbers",
    KEYNOTE: "key",
    HWP: "hwp",
    HWPX: "hwpx",
    DBF: "dbf",
    VISIO: "vsd vsdx vsdm",
    XPS: "xps oxps",
    WORKS: "wps wks",
    WORDPERFECT: "wpd",
    ONENOTE: "one onetoc2",
    OUTLOOK_DATA: "pst",
    PNG: "png",
    JPEG: "jpg jpeg jpe",
    GIF: "gif",
    TIFF: "tif tiff",
    BMP: "bmp",
    WEBP: "webp",
    HEIF: "heic heif avif",
    ZIP: "zip",
    TAR: "tar",
    GZIP: "gz tgz",
    BZIP2: "bz2 tbz2",
    XZ: "xz txz",
    SEVEN_ZIP: "7z",
    RAR: "rar",
    PROGRAM: "exe dll so dylib class pyc wasm msi",
    SOUND: "mp3 wav flac ogg oga m4a aac wma",
    VIDEO: "mp4 m4v mov avi mkv webm wmv",
    FONT: "ttf otf woff woff2",
    DATABASE: "sqlite sqlite3",
    HELP: "chm",
    SIGNED_MAIL: "p7m",
    SIGNATURE: "p7s",
    WEB_ARCHIVE: "webarchive",
    WARC: "warc arc",
}

BY_EXTENSION: dict[str, Format] = {
    extension: known
    for known, extensions in _EXTENSIONS.items()
    for extension in extensions.split()
}
