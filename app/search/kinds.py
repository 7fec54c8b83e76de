"""What the best passages of a search are, by their characters: prose, or programs. Pure."""

import re
from collections.abc import Sequence
from itertools import islice
from math import ceil

SIGNS = re.compile(r"\w[(\[]|[{}=_]|[;:]$", re.MULTILINE)
"""What programs are full of, and prose is not: calls, assignments, names with underscores, ends of
lines. Brackets of prose stand by themselves."""

CODE_SHARE = 0.03
"""Of a program's characters so many are SIGNS: in 19 of 20 functions of two sets of code, and in one
of fifty passages of prose at the most."""

LOOKED_AT_CHARS = 500

JUDGED = 10
"""So many of the best passages are looked at, whatever number of hits is asked for."""

LEAST_SHARE = 0.8
"""So many of them must be code. Documentation of programs mixes both, and is prose."""


def are_code(passages: Sequence[str]) -> bool:
    """Whether the best passages are programs; the first JUDGED of these are looked at."""
    judged = passages[:JUDGED]
    prose_allowed = len(judged) - ceil(LEAST_SHARE * len(judged))
    # The first few of prose decide it, and the others need not be looked at.
    prose = islice((text for text in judged if not is_code(text)), prose_allowed + 1)
    return bool(judged) and len(list(prose)) <= prose_allowed


def is_code(text: str) -> bool:
    """Whether a text is a program rather than prose."""
    text = text[:LOOKED_AT_CHARS]
    written = len(text) - text.count(" ") - text.count("\n")
    return len(SIGNS.findall(text)) > CODE_SHARE * max(written, 1)
