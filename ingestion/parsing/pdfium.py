"""What stands on the pages of a PDF and where: the one place that calls PDFium.

Coordinates are points from the upper left, turned so that the page's text runs from left to right.
"""

import ctypes
import math
import re
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pypdfium2_raw  # pyright: ignore[reportMissingTypeStubs] - it has none

from app.errors import DocumentRejected
from ingestion.parsing.decoding import clean
from ingestion.parsing.drafts import ENCRYPTED

_pdfium: Any = pypdfium2_raw  # carries no types

DAMAGED = "damaged: it cannot be read as a PDF"
OBJECTS_MAX = 20_000
POINTS_MAX = 60_000
NESTING_MAX = 4
RUN_GAP = 0.8
"""Of the height of a character: a wider gap parts two runs."""

_TURN_SAMPLES = 40
_BOLD_NAME = re.compile(r"(?i)bold|black|heavy|demi|-medi|cmbx|cmssbx")
_HYPHENS = "\x02\ufffe"
"""What PDFium makes of a hyphen at the end of a line."""
_METADATA = {
    "Title": "title",
    "Author": "authors",
    "Subject": "subject",
    "Keywords": "keywords",
    "Creator": "created_by",
    "CreationDate": "created_at",
    "ModDate": "modified_at",
}


@dataclass(slots=True)
class Word:
    text: str
    left: float
    right: float


@dataclass(slots=True)
class Run:
    """Words that follow each other on one line without a wide gap.

    `order` is its place among the runs as they were written; `spaced` says that a space came
    before it.
    """

    order: int
    left: float
    top: float
    right: float
    bottom: float
    words: list[Word] = field(default_factory=list[Word])
    size: float = 0.0
    bold: bool = False
    turned: bool = False
    spaced: bool = False

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


@dataclass(slots=True)
class Rule:
    """A straight line that is drawn along an axis."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def is_horizontal(self) -> bool:
        return self.right - self.left >= self.bottom - self.top


@dataclass(slots=True)
class Sheet:
    """A page: its runs in the order in which they were written, and the rules drawn on it."""

    plain: str = ""
    runs: list[Run] = field(default_factory=list[Run])
    rules: list[Rule] = field(default_factory=list[Rule])


class Pdf:
    """An open document. Raises DocumentRejected when a page cannot even be counted."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.pages_count: int = _pdfium.FPDF_GetPageCount(handle)

    def metadata(self) -> dict[str, str]:
        found = {ours: self._meta(theirs) for theirs, ours in _METADATA.items()}
        return {key: value for key, value in found.items() if value}

    def _meta(self, key: str) -> str:
        size: int = _pdfium.FPDF_GetMetaText(self._handle, key.encode(), None, 0)
        buffer = ctypes.create_string_buffer(size)
        _pdfium.FPDF_GetMetaText(self._handle, key.encode(), buffer, size)
        return clean(buffer.raw.decode("utf-16-le", "replace").rstrip("\0")).strip()

    def sheet(self, index: int) -> Sheet:
        """The page at `index` from 0; an empty one where it is damaged."""
        with self._page(index) as page:
            if not page:
                return Sheet()
            text: Any = _pdfium.FPDFText_LoadPage(page)
            if not text:
                return Sheet()
            try:
                reader = _TextReader(text)
                sheet = Sheet(plain=reader.plain(), runs=reader.runs())
                if sheet.runs:
                    sheet.rules = _RuleReader(reader.turn).rules(page)
                return sheet
            finally:
                _pdfium.FPDFText_ClosePage(text)

    def picture(self, index: int, dots_per_inch: int, pixels_max: int) -> bytes:
        """The page as a greyscale PGM file, with fewer dots where it would be too large."""
        with self._page(index) as page:
            if not page:
                raise DocumentRejected(DAMAGED)
            wide = float(_pdfium.FPDF_GetPageWidthF(page))
            high = float(_pdfium.FPDF_GetPageHeightF(page))
            scale = min(dots_per_inch / 72, math.sqrt(pixels_max / max(wide * high, 1.0)))
            width, height = max(int(wide * scale), 1), max(int(high * scale), 1)
            bitmap: Any = _pdfium.FPDFBitmap_CreateEx(
                width, height, _pdfium.FPDFBitmap_Gray, None, 0
            )
            if not bitmap:
                raise MemoryError
            try:
                _pdfium.FPDFBitmap_FillRect(bitmap, 0, 0, width, height, 0xFFFFFFFF)
                flags = _pdfium.FPDF_ANNOT | _pdfium.FPDF_GRAYSCALE
                _pdfium.FPDF_RenderPageBitmap(bitmap, page, 0, 0, width, height, 0, flags)
                stride: int = _pdfium.FPDFBitmap_GetStride(bitmap)
                pixels = ctypes.string_at(_pdfium.FPDFBitmap_GetBuffer(bitmap), stride * height)
            finally:
                _pdfium.FPDFBitmap_Destroy(bitmap)
        rows = [pixels[row * stride : row * stride + width] for row in range(height)]
        return b"P5 %d %d 255\n" % (width, height) + b"".join(rows)

    @contextmanager
    def _page(self, index: int) -> Generator[Any]:
        page: Any = _pdfium.FPDF_LoadPage(self._handle, index)
        try:
            yield page
        finally:
            if page:
                _pdfium.FPDF_ClosePage(page)


_state = {"ready": False}


@contextmanager
def open_pdf(content: bytes) -> Generator[Pdf]:
    """Raises DocumentRejected when it is encrypted or no PDF at all."""
    if not _state["ready"]:
        _pdfium.FPDF_InitLibrary()
        _state["ready"] = True
    handle: Any = _pdfium.FPDF_LoadMemDocument64(content, len(content), None)
    if not handle:
        protected = (_pdfium.FPDF_ERR_PASSWORD, _pdfium.FPDF_ERR_SECURITY)
        is_protected = _pdfium.FPDF_GetLastError() in protected
        raise DocumentRejected(ENCRYPTED if is_protected else DAMAGED)
    try:
        yield Pdf(handle)
    finally:
        _pdfium.FPDF_CloseDocument(handle)


class _TextReader:
    def __init__(self, text: Any) -> None:
        self._text = text
        self._count = max(int(_pdfium.FPDFText_CountChars(text)), 0)
        self._box = _pdfium.FS_RECTF()
        self.turn = self._turn_of_page()

    def plain(self) -> str:
        buffer = (ctypes.c_ushort * (self._count + 1))()
        written: int = _pdfium.FPDFText_GetText(self._text, 0, self._count, buffer)
        return bytes(buffer)[: 2 * max(written - 1, 0)].decode("utf-16-le", "replace")

    def runs(self) -> list[Run]:
        runs: list[Run] = []
        first = last = 0
        run: Run | None = None
        pending_space = False
        box, pointer = self._box, ctypes.byref(self._box)
        character_at, box_at = _pdfium.FPDFText_GetUnicode, _pdfium.FPDFText_GetLooseCharBox
        turn = self.turn

        def close() -> None:
            nonlocal run
            if run is not None:
                self._measure(run, first, last)
                runs.append(run)
            run = None

        for index in range(self._count):
            code: int = character_at(self._text, index)
            if code in (10, 13):
                if run is not None and not run.turned:
                    close()
                pending_space = True
                continue
            character = "-" if chr(code) in _HYPHENS else chr(code)
            if character.isspace() or not code:
                pending_space = True
                continue
            if not box_at(self._text, index, pointer):
                box.left = box.right = box.top = box.bottom = 0.0
            if turn:
                left, top, right, bottom = _turned(box.left, box.top, box.right, box.bottom, turn)
            else:
                left, top, right, bottom = box.left, -box.top, box.right, -box.bottom
            if run is not None and (run.turned or _follows(run, left, top, bottom)):
                if pending_space:
                    run.words.append(Word(character, left, right))
                else:
                    word = run.words[-1]
                    word.text += character
                    word.left = min(word.left, left)
                    word.right = max(word.right, right)
                run.left = min(run.left, left)
                run.right = max(run.right, right)
                run.top = min(run.top, top)
                run.bottom = max(run.bottom, bottom)
            else:
                close()
                run, first = Run(len(runs), left, top, right, bottom), index
                run.words.append(Word(character, left, right))
                run.turned, run.spaced = self._turn_at(index) != turn, pending_space
            last = index
            pending_space = False
            if run.turned and index + 1 < self._count and self._turn_at(index + 1) == turn:
                close()
        close()
        return runs

    def _measure(self, run: Run, first: int, last: int) -> None:
        at = (first + last) // 2
        while at > first and _pdfium.FPDFText_GetUnicode(self._text, at) in (32, 0):
            at -= 1
        matrix = _pdfium.FS_MATRIX()
        size = float(_pdfium.FPDFText_GetFontSize(self._text, at))
        if _pdfium.FPDFText_GetMatrix(self._text, at, ctypes.byref(matrix)):
            size *= math.hypot(matrix.c, matrix.d)
        run.size = round(2 * size) / 2
        weight: int = _pdfium.FPDFText_GetFontWeight(self._text, at)
        run.bold = weight >= 600 or self._is_bold(at)

    def _is_bold(self, index: int) -> bool:
        name = ctypes.create_string_buffer(128)
        _pdfium.FPDFText_GetFontInfo(self._text, index, name, len(name), None)
        return _BOLD_NAME.search(name.value.decode("ascii", "ignore")) is not None

    def _turn_of_page(self) -> int:
        step = max(self._count // _TURN_SAMPLES, 1)
        turns = Counter(self._turn_at(index) for index in range(0, self._count, step))
        return turns.most_common(1)[0][0] if turns else 0

    def _turn_at(self, index: int) -> int:
        """Quarters of a turn, as PDFium counts them: with the clock."""
        angle = float(_pdfium.FPDFText_GetCharAngle(self._text, index))
        return round(angle / (math.pi / 2)) % 4 if angle >= 0 else 0


def _follows(run: Run, left: float, top: float, bottom: float) -> bool:
    """Whether a character that starts there goes on where the run ends."""
    own, height = bottom - top, run.bottom - run.top
    lesser = (min(height, own)) or 0.1
    low = min(run.bottom, bottom)
    high = max(run.top, top)
    gap = left - run.right
    return low - high > lesser / 2 and -lesser < gap < RUN_GAP * (own or lesser)


def _turned(
    left: float, top: float, right: float, bottom: float, turn: int
) -> tuple[float, float, float, float]:
    """A box with y upwards as one with y downwards, after `turn` quarters with the clock."""
    match turn:
        case 3:
            return bottom, left, top, right
        case 2:
            return -right, bottom, -left, top
        case 1:
            return -top, -right, -bottom, -left
        case _:
            return left, -top, right, -bottom


class _RuleReader:
    def __init__(self, turn: int) -> None:
        self._turn = turn
        self._points_left = POINTS_MAX
        self._rules: list[Rule] = []

    def rules(self, page: Any) -> list[Rule]:
        count = min(int(_pdfium.FPDFPage_CountObjects(page)), OBJECTS_MAX)
        for index in range(count):
            self._read(_pdfium.FPDFPage_GetObject(page, index), [], 0)
        return self._rules

    def _read(self, item: Any, above: list[Any], depth: int) -> None:
        kind: int = _pdfium.FPDFPageObj_GetType(item)
        if kind == _pdfium.FPDF_PAGEOBJ_PATH:
            self._read_path(item, above)
        elif kind == _pdfium.FPDF_PAGEOBJ_FORM and depth < NESTING_MAX:
            matrices = [_matrix(item), *above]
            count = min(int(_pdfium.FPDFFormObj_CountObjects(item)), OBJECTS_MAX)
            for index in range(count):
                if self._points_left <= 0:
                    return
                self._read(_pdfium.FPDFFormObj_GetObject(item, index), matrices, depth + 1)

    def _read_path(self, path: Any, above: list[Any]) -> None:
        count = int(_pdfium.FPDFPath_CountSegments(path))
        self._points_left -= count
        if self._points_left <= 0 or not _is_drawn(path):
            return
        matrices = [_matrix(path), *above]
        start = at = (0.0, 0.0)
        x, y = ctypes.c_float(), ctypes.c_float()
        for index in range(count):
            segment = _pdfium.FPDFPath_GetPathSegment(path, index)
            _pdfium.FPDFPathSegment_GetPoint(segment, ctypes.byref(x), ctypes.byref(y))
            point = _placed(x.value, y.value, matrices)
            kind: int = _pdfium.FPDFPathSegment_GetType(segment)
            if kind == _pdfium.FPDF_SEGMENT_MOVETO:
                start = point
            elif kind == _pdfium.FPDF_SEGMENT_LINETO:
                self._add(at, point)
            if _pdfium.FPDFPathSegment_GetClose(segment):
                self._add(point, start)
            at = point

    def _add(self, first: tuple[float, float], second: tuple[float, float]) -> None:
        (x0, x1), (y0, y1) = sorted((first[0], second[0])), sorted((first[1], second[1]))
        if (x1 - x0 < 1) != (y1 - y0 < 1):
            self._rules.append(Rule(*_turned(x0, y1, x1, y0, self._turn)))


def _is_drawn(path: Any) -> bool:
    """Whether it shows on white paper."""
    fill, stroke = ctypes.c_int(), ctypes.c_int()
    _pdfium.FPDFPath_GetDrawMode(path, ctypes.byref(fill), ctypes.byref(stroke))
    if stroke.value or not fill.value:
        return bool(stroke.value)
    red, green, blue, alpha = (ctypes.c_uint() for _ in range(4))
    parts = (red, green, blue, alpha)
    _pdfium.FPDFPageObj_GetFillColor(path, *(ctypes.byref(part) for part in parts))
    return min(red.value, green.value, blue.value) < 250


def _matrix(item: Any) -> Any:
    matrix = _pdfium.FS_MATRIX()
    if not _pdfium.FPDFPageObj_GetMatrix(item, ctypes.byref(matrix)):
        matrix.a = matrix.d = 1.0
    return matrix


def _placed(x: float, y: float, matrices: list[Any]) -> tuple[float, float]:
    for matrix in matrices:
        x, y = matrix.a * x + matrix.c * y + matrix.e, matrix.b * x + matrix.d * y + matrix.f
    return x, y
