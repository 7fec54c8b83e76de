"""Text out of pictures, by the Tesseract that is installed, if one is."""

import shutil
import subprocess
from functools import cache

from app.errors import DocumentRejected
from ingestion.parsing.decoding import clean
from ingestion.parsing.pdfium import Pdf

LANGUAGES_MAX = 4
DOTS_PER_INCH = 300
PIXELS_MAX = 25_000_000

_NO_LANGUAGES = ("osd", "equ", "snum")


def available() -> bool:
    return bool(languages())


@cache
def languages() -> str:
    """What Tesseract can read here, such as "deu+eng"; empty where there is none."""
    program = shutil.which("tesseract")
    if program is None:
        return ""
    asked = subprocess.run(  # noqa: S603 - the program that is installed
        [program, "--list-langs"], capture_output=True, text=True, check=False
    )
    # Which stream the list comes on depends on the version.
    names = [line.strip() for line in (asked.stdout + asked.stderr).split("\n")[1:]]
    known = [name for name in names if name.replace("_", "").isalnum()]
    return "+".join(sorted(set(known) - set(_NO_LANGUAGES))[:LANGUAGES_MAX])


def read_page(pdf: Pdf, index: int) -> str:
    """The text in the picture of a page; none where it cannot be read, so that others can be."""
    try:
        return "\n\n".join(read_picture(pdf.picture(index, DOTS_PER_INCH, PIXELS_MAX)))
    except DocumentRejected:
        return ""


def read_picture(content: bytes) -> list[str]:
    """The text of each page of an image file. Raises DocumentRejected when it cannot be read."""
    command = [shutil.which("tesseract") or "tesseract", "stdin", "stdout", "-l", languages()]
    ran = subprocess.run(command, input=content, capture_output=True, check=False)  # noqa: S603
    if ran.returncode:
        raise DocumentRejected("no text: its image could not be read by OCR")
    pages = clean(ran.stdout.decode("utf-8", "replace")).removesuffix("\f").split("\f")
    return [page.strip() for page in pages]
