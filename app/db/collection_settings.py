"""What a collection decides for itself; whatever it leaves out is the service's setting."""

from collections.abc import Mapping
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import InvalidInput

ChunkingStrategy = Literal["structure", "recursive", "fixed"]
"""By headings, paragraphs, tables and functions; by paragraphs and sentences; by length alone."""

PersonalDataPolicy = Literal["off", "report", "mask", "refuse"]

RerankerChoice = Literal["off", "late-interaction"]
"""Names only, never a path or an address: what the service loads is for its operator to say."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChunkingSettings(_Part):
    """How a text is cut. `tokens` is the size to aim for, None for the service's own."""

    tokens: int | None = Field(default=None, ge=16, le=2000)
    overlap: int = Field(
        default=0, ge=0, le=1000, description="Tokens that a passage repeats of the one before it."
    )
    strategy: ChunkingStrategy = "structure"

    @model_validator(mode="after")
    def _leave_room(self) -> "ChunkingSettings":
        if self.tokens is not None and self.overlap > self.tokens // 2:
            raise ValueError("overlap may be at most half of tokens")
        return self


class SearchSettings(_Part):
    """How passages are found: nothing in here shapes what is stored of a document."""

    reranker: RerankerChoice | None = Field(
        default=None, description="What re-orders the best passages; null: the service's own."
    )
    token_vectors: bool = False
    rewrite: bool = Field(
        default=False, description="Let a language model put queries in other words."
    )


class AnswerSettings(_Part):
    """How questions are answered: nothing in here shapes what is stored of a document."""

    quote_when_busy: bool = Field(
        default=False,
        description="Quote the passages' own sentences when no model server is free in time.",
    )


class CollectionSettings(_Part):
    """Stored with the collection, as JSON without the defaults."""

    chunking: ChunkingSettings = ChunkingSettings()
    personal_data: PersonalDataPolicy = "off"
    search: SearchSettings = SearchSettings()
    answers: AnswerSettings = AnswerSettings()

    def stored(self) -> dict[str, object]:
        return self.model_dump(mode="json", exclude_defaults=True)

    def shaping(self) -> dict[str, object]:
        """What of it shapes documents: where this changes, they are made anew."""
        stored = self.stored().items()
        return {name: value for name, value in stored if name not in ("search", "answers")}

    def changed(self, change: Mapping[str, Any]) -> "CollectionSettings":
        """These settings after a JSON merge patch, in which null resets; raises InvalidInput."""
        try:
            return CollectionSettings.model_validate(_merged(self.stored(), change))
        except ValidationError as error:
            wrong = (
                f"{'.'.join(['settings', *map(str, one['loc'])])}: "
                f"{one['msg'].removeprefix('Value error, ')}"
                for one in error.errors()
            )
            raise InvalidInput(
                "; ".join(wrong), hint="Correct the named setting; null resets it."
            ) from None


def _merged(value: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(value)
    for key, new in change.items():
        if new is None:
            merged.pop(key, None)
        elif isinstance(new, Mapping):
            own = merged.get(key)
            merged[key] = _merged(
                cast("Mapping[str, Any]", own if isinstance(own, Mapping) else {}),
                cast("Mapping[str, Any]", new),
            )
        else:
            merged[key] = new
    return merged


DEFAULTS = CollectionSettings()
