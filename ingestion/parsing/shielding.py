"""Carries characters through kreuzberg that it would lose.

Of XML and of Word documents version 4.10 drops every entity: "R&amp;D" comes out as "RD", and
`x &lt; y` as "x y". So they travel as private characters, and are put back in what comes out.
"""

import re

NOTE_MARK = "\U0010ff06"
"""Stands for `[^`, which kreuzberg would take for a note of its own."""

_SHIELDS = dict(zip("&<>\"'", "\U0010ff01\U0010ff02\U0010ff03\U0010ff04\U0010ff05", strict=True))
_RESTORED = str.maketrans(
    {mark: character for character, mark in _SHIELDS.items()} | {NOTE_MARK: "[^"}
)
_NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}

_ENTITY = re.compile(r"&(?:(amp|lt|gt|quot|apos)|#(\d{1,7})|#x([0-9A-Fa-f]{1,6}));")


def shield(xml: str) -> str:
    return _ENTITY.sub(_shielded, xml)


def restore(text: str) -> str:
    return text.translate(_RESTORED)


def _shielded(entity: re.Match[str]) -> str:
    named, decimal, hexadecimal = entity.groups()
    if named:
        return _SHIELDS[_NAMED[named]]
    code = int(decimal) if decimal else int(hexadecimal, 16)
    # What XML does not allow stays as it is.
    if code < ord(" ") or 0xD800 <= code < 0xE000 or code > 0x10FFFF:
        return entity.group()
    return _SHIELDS.get(chr(code), chr(code))
