"""The wire of embedding models."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field

from app.api.schemas import CollectionName, Text, Wire
from app.db.models.switches import SwitchStatus
from app.documents.switches import ModelState

MODEL_CHARS_MAX = 1000


class ChosenCollections(Wire):
    """All that the caller may see, when none is named."""

    collections: (
        Annotated[tuple[CollectionName, ...], Field(min_length=1, max_length=1000)] | None
    ) = None


class NewSwitch(ChosenCollections):
    """`activate`: let it serve as soon as it is ready; else it waits until it is asked to.

    `keep_old`: keep the vectors of the model that served, and keep them complete, for a way back.
    """

    model: Annotated[
        Text,
        Field(min_length=1, max_length=MODEL_CHARS_MAX, examples=["BAAI/bge-small-en-v1.5"]),
    ]
    activate: bool = True
    keep_old: bool = True


class ModelUseInfo(BaseModel):
    collection: str
    state: ModelState
    vectors: int


class ModelInfo(BaseModel):
    """`configured`: new collections get it. `bytes` is what the caller's vectors take on disk."""

    name: str
    digest: str
    dimensions: int
    configured: bool
    bytes: int
    collections: list[ModelUseInfo]


class ModelList(BaseModel):
    models: list[ModelInfo]


class SwitchInfo(BaseModel):
    """The model beside the one that serves a collection.

    `preparing`: `embedded` of `passages` have a vector of it; `prepared`: all have; `retained`: it
    served before; `dropping`: its vectors are being removed; `failed`: see `reason`. Switches of
    one `switch_id` come into service together.
    """

    collection: str
    serving: str
    model: str
    status: SwitchStatus
    activates: bool
    embedded: int
    passages: int
    reason: str | None
    switch_id: UUID
    job_id: int | None
    created_at: datetime


class SwitchList(BaseModel):
    switches: list[SwitchInfo]
