"""Which programming language a text is written in, for those whose functions can be told apart."""

import re

from ingestion.types import CodeLanguage

OPENING_CHARS = 16 * 1024

_EXTENSIONS: dict[CodeLanguage, str] = {
    "python": "py pyi",
    "javascript": "js mjs cjs jsx",
    "typescript": "ts mts cts",
    "tsx": "tsx",
    "go": "go",
    "rust": "rs",
    "java": "java",
    "c": "c h",
    "cpp": "cc cpp cxx hpp hh",
    "c_sharp": "cs",
    "ruby": "rb rake gemspec",
    "php": "php",
    "bash": "sh bash zsh",
}
_BY_EXTENSION: dict[str, CodeLanguage] = {
    extension: language
    for language, extensions in _EXTENSIONS.items()
    for extension in extensions.split()
}
_BY_INTERPRETER: dict[str, CodeLanguage] = {
    "python": "python",
    "node": "javascript",
    "ruby": "ruby",
    "php": "php",
    "sh": "bash",
    "bash": "bash",
    "dash": "bash",
    "ksh": "bash",
    "zsh": "bash",
}
_SHEBANG = re.compile(
    r"#![ \t]*(?:\S*/)?(?:env[ \t]+(?:-\S+[ \t]+)*)?(?:\S*/)?([a-z]+)[\d.]*(?=\s|$)"
)
# What a header of C++ holds and one of C cannot.
_CPP = re.compile(
    r"^[ \t]*(?:class[ \t]+\w+|namespace\b|template[ \t]*<|using[ \t]+\w|public:|private:|"
    r"#[ \t]*include[ \t]*<\w+>)|\bstd::",
    re.MULTILINE,
)


def code_language(text: str, extension: str) -> CodeLanguage | None:
    """By the extension of a file, else by its first line; None for any other language."""
    language = _BY_EXTENSION.get(extension)
    if language == "c" and extension == "h" and _CPP.search(text[:OPENING_CHARS]):
        return "cpp"
    return language or _interpreted(text)


def _interpreted(text: str) -> CodeLanguage | None:
    if text.startswith("<?php"):
        return "php"
    shebang = _SHEBANG.match(text)
    return _BY_INTERPRETER.get(shebang.group(1)) if shebang else None
