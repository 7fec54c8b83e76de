"""The files that git tracks, for tests that look at all of them."""

import subprocess

from tests.conftest import ROOT

TRACKED = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    if (ROOT / name).is_file()
]
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in TRACKED
    if path.suffix not in {".pdf", ".docx", ".png"} and b"\0" not in path.read_bytes()
}
PAGES = {name: text for name, text in TEXTS.items() if name.endswith(".md")}
