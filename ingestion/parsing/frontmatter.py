"""The YAML or TOML block in front of a Markdown text."""

import re
import tomllib
from datetime import date
from typing import Any, cast

import yaml

FRONT_MATTER_CHARS_MAX = 16 * 1024

_BLOCK = re.compile(r"(---|\+\+\+)[ \t]*\n(.*?)\n(?:\1|\.\.\.)[ \t]*(?:\n|$)", re.DOTALL)
# The parser in C, where PyYAML was built with it: ten times as fast.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Metadata and the text below; no metadata and the whole text where there is no front matter.

    Only plain values and lists of them are taken, so that nothing can be nested or repeated
    without end.
    """
    match = _BLOCK.match(text[:FRONT_MATTER_CHARS_MAX])
    if not match:
        return {}, text
    try:
        loaded: Any = (
            tomllib.loads(match.group(2))
            if match.group(1) == "+++"
            else yaml.load(match.group(2), Loader=_Loader)  # noqa: S506 - a safe loader
        )
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, text
    if not isinstance(loaded, dict):
        return {}, text
    values = {str(key): _plain(value) for key, value in cast("dict[Any, Any]", loaded).items()}
    metadata = {key: value for key, value in values.items() if value is not None}
    return metadata, text[match.end() :]


def _plain(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list):
        items = cast("list[object]", value)
        return [str(item) for item in items if isinstance(item, str | int | float | date)]
    return None
