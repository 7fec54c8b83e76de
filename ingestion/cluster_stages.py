"""The stages of a run on a cluster, as its processes work them: prepare, embed, write.

Ray Data hands them blocks of documents as columns. They are the functions of
`ingestion/pipeline.py`. What a block writes is one transaction, because a commit can take longer than
all that it commits. A block which Ray has done a second time, because a node died, finds what was
done and does nothing.
"""

import asyncio
import pickle
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import Any, Literal, TypeVar

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection

from app.config import Settings
from app.db.documents import SourceState
from app.db.session import WRITERS_IDLE_SECONDS, open_engine
from app.embedding.base import Embedder, Vectors
from app.embedding.lazy import LazyEmbedder
from app.embedding.loading import open_embedder
from app.errors import DocumentRejected
from app.telemetry import stage
from ingestion.books import source_of
from ingestion.personal_data import PersonalDataRefused
from ingestion.pipeline import (
    Original,
    Tools,
    chunk,
    embed,
    new_version,
    open_tools,
    parse,
    protect,
)
from ingestion.sources.base import Item, ItemGone, ItemUnreadable, Source
from ingestion.sources.opening import open_source
from ingestion.sources.selection import Selection
from ingestion.types import ParsedDocument
from ingestion.writing import (
    ModelSwitched,
    NewVersion,
    Passages,
    Shelf,
    SourceFile,
    Superseded,
    record_failed_file,
    write_file,
)

Result = TypeVar("Result")
Rows = dict[str, Any]
"""A block as Ray hands it over: columns of equal length."""

OpenModel = Callable[[Settings], Embedder]

CONNECTIONS_PER_PROCESS = 2
ITEM_COST_BYTES = 4096
"""What a document costs besides its bytes, so that many small ones are not taken for nothing."""

Outcome = Literal["written", "failed", "left"]


@dataclass(frozen=True, slots=True)
class Due:
    """Something new or changed, and what is known of it."""

    item: Item
    location: str
    state: SourceState | None

    @property
    def weight(self) -> int:
        return (self.item.size_bytes or 0) + ITEM_COST_BYTES


@dataclass(frozen=True, slots=True)
class Assignment:
    """What every process of the cluster must know to take part in a run."""

    settings: Settings
    database_url: str = field(repr=False)
    shelf: Shelf
    pipeline_digest: str
    selection: Selection


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document that has been read, parsed, and looked through for personal data."""

    file: SourceFile
    original: Original
    parsed: ParsedDocument


def open_on_one_core(settings: Settings) -> Embedder:
    """There is a process for every core."""
    return open_embedder(settings, threads=1)


@dataclass(frozen=True, slots=True)
class Made:
    """What the stages before made of a document; nothing of one that is not to be written."""

    outcome: Outcome
    document: Prepared | None
    passages: Passages | None
    vectors: Vectors | None


class PreparingActor:
    """Reads, parses and cuts; what cannot be is recorded, or left to the ordinary run."""

    def __init__(self, assignment: Assignment) -> None:
        self._station = Station(assignment, open_on_one_core)

    def __call__(self, rows: Rows) -> Rows:
        due: list[Due] = [one for block in rows["due"] for one in pickle.loads(block)]  # noqa: S301 - from our driver
        done = self._station.do(_gathered(_prepare(one, self._station) for one in due))
        return {
            "uri": np.array([one.item.uri for one in due], object),
            "outcome": np.array([outcome for outcome, _, _ in done], object),
            "document": np.array([pickle.dumps(document) for _, document, _ in done], object),
            "passages": np.array([pickle.dumps(passages) for _, _, passages in done], object),
        }


class EmbeddingActor:
    """Holds the model; gives the documents' passages their vectors."""

    def __init__(self, assignment: Assignment, runtime: Literal["auto", "onnx", "torch"]) -> None:
        settings = assignment.settings.model_copy(update={"embedding_runtime": runtime})
        self._station = Station(replace(assignment, settings=settings), open_on_one_core)

    def __call__(self, rows: Rows) -> Rows:
        loaded: list[Passages | None] = [pickle.loads(one) for one in rows["passages"]]  # noqa: S301 - from a stage of ours
        tools = self._station.tools
        embedded_before = tools.embedded_count
        vectors = self._station.do(_gathered(_embed(one, self._station) for one in loaded))
        # Of the whole block, because documents share texts: told with its first document.
        embedded = np.zeros(len(loaded), np.int64)
        embedded[:1] = tools.embedded_count - embedded_before
        pickled = np.array([pickle.dumps(one) for one in vectors], object)
        return {**rows, "vectors": pickled, "embedded": embedded}


class WritingActor:
    """Holds connections; makes the versions serve. It needs the model's name, never the model."""

    def __init__(self, assignment: Assignment) -> None:
        self._station = Station(assignment, LazyEmbedder)

    def __call__(self, rows: Rows) -> Rows:
        columns = (rows["outcome"], rows["document"], rows["passages"], rows["vectors"])
        block = [
            Made(outcome, *map(pickle.loads, parts))
            for outcome, *parts in zip(*columns, strict=True)
        ]
        outcomes = self._station.do(
            write_block(block, self._station.assignment, self._station.tools)
        )
        return {
            "uri": rows["uri"],
            "outcome": np.array([outcome for outcome, _ in outcomes], object),
            "chunks": np.array([chunks for _, chunks in outcomes], np.int64),
            "embedded": rows["embedded"],
        }


async def _prepare(
    one: Due, station: "Station"
) -> tuple[Outcome, Prepared | None, Passages | None]:
    assignment, tools = station.assignment, station.tools
    try:
        source = station.source(one.location)
        content = await source.read(one.item, None, assignment.settings.max_upload_bytes)
    except (ItemUnreadable, ItemGone):
        return "left", None, None
    known = one.state
    if content is None or (known and known.serves(content.sha256, assignment.pipeline_digest)):
        return "left", None, None
    file = source_of(one.item, known, content)
    original = Original(file.name, file.sha256, file.content)
    try:
        parsed = await parse(original, tools)
        original, parsed = await protect(original, parsed, assignment.shelf, tools)
        passages = await chunk(parsed, assignment.shelf, tools)
    except DocumentRejected as error:
        if error.retryable:
            return "left", None, None
        reason = error.reason
        refused = error.counts if isinstance(error, PersonalDataRefused) else None
        await tools.transaction(
            lambda connection: record_failed_file(
                connection, assignment.shelf, file, reason, assignment.pipeline_digest, refused
            )
        )
        return "failed", None, None
    return "written", Prepared(file, original, parsed), passages


async def _embed(passages: Passages | None, station: "Station") -> Vectors | None:
    if passages is None:
        return None
    return await embed(passages, station.assignment.shelf, station.tools)


async def write_block(
    block: Sequence[Made], assignment: Assignment, tools: Tools
) -> list[tuple[Outcome, int]]:
    """Write what was made, all in one transaction; of each document what became of it, and its passages.

    Where others have changed one of the documents meanwhile, each is written by itself, and those are left.
    """
    try:
        return await _write_together(block, assignment, tools)
    except (Superseded, ModelSwitched):
        return [await _write_alone(one, assignment, tools) for one in block]


async def _write_alone(one: Made, assignment: Assignment, tools: Tools) -> tuple[Outcome, int]:
    try:
        [outcome] = await _write_together([one], assignment, tools)
    except (Superseded, ModelSwitched):
        return "left", 0
    return outcome


async def _write_together(
    block: Sequence[Made], assignment: Assignment, tools: Tools
) -> list[tuple[Outcome, int]]:
    """Raises Superseded or ModelSwitched for one that cannot be written, and nothing is."""
    shelf = assignment.shelf
    versions: list[tuple[SourceFile, NewVersion]] = []
    for one in block:
        if one.document is not None and one.passages is not None and one.vectors is not None:
            document = one.document
            version = await new_version(
                document.original, document.parsed, one.passages, one.vectors, shelf, tools
            )
            versions.append((document.file, version))
    # In one order, so that two blocks with the same documents wait for each other in turn.
    versions.sort(key=lambda pair: pair[0].uri)

    async def write(connection: AsyncConnection) -> None:
        for file, version in versions:
            await write_file(connection, shelf, file, version)

    if versions:
        with stage("ingest", "write"):
            await tools.transaction(write)
    return [(one.outcome, len(one.passages.chunks) if one.passages else 0) for one in block]


class Station:
    """The pipeline in one process of the cluster, which keeps it for all blocks that come by."""

    def __init__(self, assignment: Assignment, open_model: OpenModel) -> None:
        self.assignment = assignment
        self._open_model = open_model
        self._sources: dict[str, Source] = {}
        # Never closed: Ray ends the process, and with it the parser and the connections.
        self._opened = AsyncExitStack()
        self._loop = asyncio.new_event_loop()
        # Ray calls from whichever thread it likes; what is opened here belongs to one loop.
        Thread(target=self._loop.run_forever, name="station", daemon=True).start()
        self.tools = self.do(self._open())

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def source(self, location: str) -> Source:
        if location not in self._sources:
            self._sources[location] = open_source(
                location, self.assignment.selection, self.assignment.settings
            )
        return self._sources[location]

    async def _open(self) -> Tools:
        settings = self.assignment.settings
        engine = open_engine(
            settings,
            self.assignment.database_url,
            pool_size=CONNECTIONS_PER_PROCESS,
            idle_seconds=WRITERS_IDLE_SECONDS,
            pre_ping=False,
        )
        embedder = await asyncio.to_thread(self._open_model, settings)
        return await self._opened.enter_async_context(open_tools(settings, engine, embedder))


async def _gathered(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    return await asyncio.gather(*work)
