"""What a collection decides for itself; whatever it leaves out is the service's setting."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ChunkingStrategy = Literal["structure", "recursive", "fixed"]
"""By headings, paragraphs, tables and functions; by paragraphs and sentences; by length alone."""

PersonalDataPolicy = Literal["off", "report", "mask", "refuse"]


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


class CollectionSettings(_Part):
    """Stored with the collection, as JSON without the defaults."""

    chunking: ChunkingSettings = ChunkingSettings()
    personal_data: PersonalDataPolicy = "off"

    def stored(self) -> dict[str, object]:
        return self.model_dump(mode="json", exclude_defaults=True)


DEFAULTS = CollectionSettings()
