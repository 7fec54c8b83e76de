"""Filters on documents: what a request may ask for, turned into conditions with bound values."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast
from uuid import UUID

from psycopg.types.json import Jsonb

from app.errors import InvalidInput

MAX_FILTERS = 50
MAX_CHOICES = 200
MAX_KEY_CHARS = 200
MAX_VALUE_CHARS = 1_000

_COMPARISONS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_COLUMNS = {"$uri": "d.uri", "$title": "d.title", "$media_type": "d.media_type"}
_DOCUMENT_ID = "$document_id"

_HINT = (
    'A filter is {"field": value}, {"field": {"$in": [values]}} or '
    '{"field": {"$gte": low, "$lt": high}}; values are strings, numbers, true or false.'
)

Bind = Callable[[Any], str]


def filter_conditions(filters: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Conditions on `documents AS d`, all of which must hold, and the values bound in them.

    A field is a key of the document's metadata, or `$uri`, `$title`, `$media_type` or
    `$document_id`. A metadata value that is a list equals each of its items. Ranges compare
    numbers with numbers and strings with strings, by code point, so ISO dates by time. Raises
    InvalidInput for what makes no sense.
    """
    if len(filters) > MAX_FILTERS:
        raise InvalidInput(f"At most {MAX_FILTERS} fields can be filtered on.", hint=_HINT)
    values: dict[str, Any] = {}

    def bind(value: Any) -> str:
        name = f"filter_{len(values)}"
        values[name] = value
        return f"%({name})s"

    conditions = [
        _operation(_checked_field(field), operator, operand, bind)
        for field, wanted in filters.items()
        for operator, operand in _operations(field, wanted)
    ]
    return conditions, values


def _operations(field: str, wanted: Any) -> list[tuple[str, Any]]:
    if not isinstance(wanted, Mapping):
        return [("$in", [wanted])]
    operations = list(cast("Mapping[str, Any]", wanted).items())
    if not operations:
        raise InvalidInput(f"The filter on {_shown(field)} says nothing.", hint=_HINT)
    return operations


def _operation(field: str, operator: str, operand: Any, bind: Bind) -> str:
    if operator == "$in":
        if not isinstance(operand, list | tuple):
            raise InvalidInput(f"$in for {_shown(field)} needs a list.", hint=_HINT)
        choices = cast("Sequence[Any]", operand)
        if not 0 < len(choices) <= MAX_CHOICES:
            raise InvalidInput(
                f"$in for {_shown(field)} needs 1 to {MAX_CHOICES} values.", hint=_HINT
            )
        return _membership(field, [_checked_value(field, choice) for choice in choices], bind)
    if operator in _COMPARISONS:
        return _comparison(field, _COMPARISONS[operator], _checked_value(field, operand), bind)
    raise InvalidInput(
        f"{_shown(operator)} is not an operator (filter on {_shown(field)}).", hint=_HINT
    )


def _membership(field: str, choices: Sequence[Any], bind: Bind) -> str:
    if field == _DOCUMENT_ID:
        return f"d.id = ANY({bind([_document_id(choice) for choice in choices])}::uuid[])"
    if field in _COLUMNS:
        texts = [_text(field, choice) for choice in choices]
        return f"{_COLUMNS[field]} = ANY({bind(texts)}::text[])"
    items = [Jsonb({field: item}) for choice in choices for item in (choice, [choice])]
    return f"d.metadata @> ANY({bind(items)}::jsonb[])"


def _comparison(field: str, sign: str, bound: Any, bind: Bind) -> str:
    if field == _DOCUMENT_ID or isinstance(bound, bool):
        raise InvalidInput(f"{_shown(field)} has no order to compare by.", hint=_HINT)
    if field in _COLUMNS:
        return f'{_COLUMNS[field]} COLLATE "C" {sign} {bind(_text(field, bound))}'
    key = bind(field)
    # Only the branch that is taken is evaluated, so a text is never read as a number.
    if isinstance(bound, str):
        kind, value = "string", f'(d.metadata ->> {key}) COLLATE "C" {sign} {bind(bound)}'
    else:
        kind = "number"
        value = f"(d.metadata ->> {key})::numeric {sign} {bind(bound)}::numeric"
    return f"CASE jsonb_typeof(d.metadata -> {key}) WHEN '{kind}' THEN {value} ELSE false END"


def _checked_field(field: str) -> str:
    if not _is_storable(field) or not 0 < len(field) <= MAX_KEY_CHARS:
        raise InvalidInput(f"{_shown(field)} cannot be a field of a filter.", hint=_HINT)
    if field.startswith("$") and field not in _COLUMNS and field != _DOCUMENT_ID:
        names = ", ".join([*_COLUMNS, _DOCUMENT_ID])
        raise InvalidInput(
            f"There is no field {_shown(field)}.",
            hint=f"Besides metadata, documents can be filtered on {names}.",
        )
    return field


def _checked_value(field: str, value: Any) -> Any:
    match value:
        case bool() | int():
            valid = abs(value) < 10**300
        case float():
            valid = math.isfinite(value)
        case str():
            valid = len(value) <= MAX_VALUE_CHARS and _is_storable(value)
        case _:
            valid = False
    if not valid:
        raise InvalidInput(f"A value for {_shown(field)} cannot be used to filter.", hint=_HINT)
    return value


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{_shown(field)} is a text, {_shown(value)} is not.", hint=_HINT)
    return value


def _document_id(value: Any) -> UUID:
    try:
        return UUID(_text(_DOCUMENT_ID, value))
    except ValueError:
        raise InvalidInput(f"{_shown(value)} is not a document's id.", hint=_HINT) from None


def _is_storable(text: str) -> bool:
    """Whether PostgreSQL can hold it: no NUL and no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(value: Any) -> str:
    return ascii(value)[:60]
