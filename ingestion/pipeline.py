"""How a document becomes searchable."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.config import Settings
from app.db.collection_settings import CollectionSettings
from app.db.documents import reserve_chunk_ids
from app.db.transactions import in_transaction
from app.db.vectors import StoredModel, find_model, known_vectors, read_model, register_model
from app.embedding.base import Embedder, Vectors
from app.embedding.known import find_known, open_known
from app.embedding.loading import open_embedder
from app.embedding.model_folder import location_of
from app.errors import DocumentRejected
from app.failpoints import reach
from app.telemetry import CHUNKS_REUSED, stage
from app.terms import TERMS_VERSION, extract_terms
from ingestion.chunking import CHUNKING_VERSION, split
from ingestion.embedding import RoundEmbedder, assemble, new_texts
from ingestion.parsing import PARSING_VERSION
from ingestion.parsing.sandbox import ParserPool
from ingestion.personal_data import SCAN_VERSION, scan
from ingestion.signatures import sign
from ingestion.types import Chunking, ParsedDocument, embedded_text, heading_path
from ingestion.writing import ModelSwitched, NewVersion, Passages, Shelf

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Original:
    """A document as it was given to us; the name's suffix helps to tell what it is.

    `given` is the metadata that came with it.
    """

    filename: str
    sha256: bytes
    content: bytes = field(repr=False)
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])


Write = Callable[[AsyncConnection, NewVersion], Awaitable[Result]]


Stage = Literal["parsing", "chunking", "embedding", "writing"]
Report = Callable[[Stage, int, int], None]
"""Told how far the work is: stage, passages done and passages in all (0 while not known)."""


def _silent(_stage: Stage, _done: int, _total: int) -> None: ...


async def process(
    original: Original,
    shelf: Shelf,
    tools: "Tools",
    write: Write[Result],
    report: Report = _silent,
) -> Result:
    """From bytes to a version that serves.

    Raises DocumentRejected with a reason for people, EmbeddingUnavailable, ScanUnavailable, and
    what transactions raise.
    """
    report("parsing", 0, 0)
    parsed = await parse(original, tools)
    reach("pipeline.parsed")
    original, parsed = await protect(original, parsed, shelf, tools)
    report("chunking", 0, 0)
    passages = await chunk(parsed, shelf, tools)
    reach("pipeline.chunked")
    while True:
        vectors = await embed(passages, shelf, tools, report)
        reach("pipeline.embedded")
        report("writing", len(passages.chunks), len(passages.chunks))
        try:
            return await store(original, parsed, passages, vectors, shelf, tools, write)
        except ModelSwitched as switched:
            shelf = replace(shelf, model_id=switched.model_id)


async def parse(original: Original, tools: "Tools") -> ParsedDocument:
    with stage("ingest", "parse"):
        return await tools.parsers.parse(original.content, original.filename)


async def protect(
    original: Original, parsed: ParsedDocument, shelf: Shelf, tools: "Tools"
) -> tuple[Original, ParsedDocument]:
    """Both as the collection's policy on personal data lets them be kept.

    Raises PersonalDataRefused, and ScanUnavailable where it cannot be looked for.
    """
    with stage("ingest", "scan"):
        policy = shelf.settings.personal_data
        kept, given = await tools.compute(scan, parsed, original.given, policy)
        return replace(original, given=given), kept


async def chunk(parsed: ParsedDocument, shelf: Shelf, tools: "Tools") -> Passages:
    with stage("ingest", "chunk"):
        chunking = tools.chunking(shelf.settings)
        model = await tools.model(shelf.model_id)
        return await tools.compute(cut, parsed, model.embedder, chunking)


async def embed(
    passages: Passages, shelf: Shelf, tools: "Tools", report: Report = _silent
) -> Vectors:
    """Vectors of the passages, in their order; only of texts that are new to the tenant."""
    with stage("ingest", "embed"):
        model = await tools.model(shelf.model_id)

        def tell(done: int) -> None:
            report("embedding", done, len(passages.texts))

        return await vectors_of(
            passages.hashes, passages.texts, shelf.tenant_id, model, tools, tell
        )


async def vectors_of(
    hashes: Sequence[bytes],
    texts: Sequence[str],
    tenant_id: int,
    model: "Model",
    tools: "Tools",
    tell: Callable[[int], None] | None = None,
) -> Vectors:
    """The model's vectors of the texts, in their order; `tell` is told how many of them there are.

    Those that the tenant has already, of whatever document, are not made again.
    """

    async def look_up(connection: AsyncConnection) -> dict[bytes, Vectors]:
        return await known_vectors(connection, tenant_id, model.id, sorted(set(hashes)))

    vectors = await tools.transaction(look_up)
    new = new_texts(hashes, texts, vectors)
    CHUNKS_REUSED.inc(len(hashes) - len(new))
    known_count = len(texts) - len(new)

    def tell_of_new(done: int) -> None:
        if tell is not None:
            tell(known_count + done)

    tell_of_new(0)
    made = await model.rounds.embed(list(new.values()), tell_of_new)
    vectors.update(zip(new, made, strict=True))
    return assemble(hashes, vectors, model.embedder.dimensions)


async def store(
    original: Original,
    parsed: ParsedDocument,
    passages: Passages,
    vectors: Vectors,
    shelf: Shelf,
    tools: "Tools",
    write: Write[Result],
) -> Result:
    with stage("ingest", "write"):
        version = await new_version(original, parsed, passages, vectors, shelf, tools)
        result = await tools.transaction(lambda connection: write(connection, version))
        reach("pipeline.committed")
        tools.chunks_count += len(passages.chunks)
        return result


async def new_version(
    original: Original,
    parsed: ParsedDocument,
    passages: Passages,
    vectors: Vectors,
    shelf: Shelf,
    tools: "Tools",
) -> NewVersion:
    """What is to be written, with ids for its chunks."""
    version = NewVersion(
        sha256=original.sha256,
        pipeline_digest=tools.digest(shelf.settings),
        parsed=parsed,
        passages=passages,
        model_id=shelf.model_id,
        vectors=vectors,
        first_chunk_id=await tools.chunk_ids(len(passages.chunks)),
        given=original.given,
    )
    reach("pipeline.ids_reserved")
    return version


def cut(parsed: ParsedDocument, embedder: Embedder, chunking: Chunking) -> Passages:
    """The passages of a text, with what both search legs see of them."""
    chunks = split(parsed, embedder.tokenizer, chunking)
    if not chunks:
        raise DocumentRejected("there is no text in it")
    texts = [embedded_text(parsed.title, chunk) for chunk in chunks]
    return Passages(
        chunks=chunks,
        texts=texts,
        hashes=[hashlib.sha256(text.encode()).digest() for text in texts],
        terms=[extract_terms(text, parsed.language) for text in texts],
        title_terms=[
            extract_terms(heading_path(parsed.title, chunk), parsed.language) for chunk in chunks
        ],
        signature=sign(parsed.text),
    )


def digest_of(chunking: Chunking, own: CollectionSettings) -> str:
    """Names everything that shapes a version: equal digests make equal versions of an original.

    The embedding model is the collection's, and changes with all its vectors at once: what is
    there need not be made anew for that.
    """
    versions = [PARSING_VERSION, CHUNKING_VERSION, TERMS_VERSION]
    shaped = [chunking.tokens, chunking.overlap, chunking.strategy, own.personal_data]
    if own.personal_data != "off":
        shaped.append(SCAN_VERSION)
    return hashlib.sha256(repr([*versions, *shaped]).encode()).hexdigest()


# --- what it works with ---------------------------------------------------------------------------

CHUNK_IDS_RESERVED = 1000
DATABASE_CONNECTIONS = 4
DATABASE_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Model:
    """An embedding model with its id in the database; `rounds` embeds with it for all documents."""

    id: int
    embedder: Embedder
    rounds: RoundEmbedder


class Tools:
    """The pipeline's parser, models and database, for as long as `open_tools` is open.

    `embedder` is the configured model, which new collections get. Others are loaded for the
    collections that have them, and stay. `chunks_count` counts what has gone through it so far.
    """

    def __init__(
        self,
        settings: Settings,
        engine: AsyncEngine,
        embedder: Embedder,
        parsers: ParserPool,
        rounds: RoundEmbedder,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.embedder = embedder
        self.parsers = parsers
        self.rounds = rounds
        self.chunks_count = 0
        # More threads would only fight for the interpreter.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chunking")
        self._models: dict[int, Model] = {}
        self._loading = asyncio.Lock()
        self._connections = asyncio.Semaphore(DATABASE_CONNECTIONS)
        self._chunk_ids = range(0)
        self._reserving = asyncio.Lock()

    def chunking(self, own: CollectionSettings) -> Chunking:
        """How a collection's texts are cut: its own word, else the service's."""
        tokens = own.chunking.tokens or self.settings.chunk_tokens
        overlap = min(own.chunking.overlap, tokens // 2)
        return Chunking(tokens=tokens, overlap=overlap, strategy=own.chunking.strategy)

    def digest(self, own: CollectionSettings) -> str:
        """Names the pipeline as it works for a collection with these settings."""
        return digest_of(self.chunking(own), own)

    async def compute(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run what takes the processor away from the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def transaction(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Do `work` in a transaction, patiently; it must find out itself that it was done."""
        async with self._connections:
            return await in_transaction(
                self.engine.begin, work, patience_seconds=DATABASE_PATIENCE_SECONDS
            )

    async def chunk_ids(self, count: int) -> int:
        """The first of so many consecutive ids; what is left of them at the end is never used.

        Reserved by the thousand: each time is a transaction that all writers wait for.
        """
        async with self._reserving:
            if len(self._chunk_ids) < count:
                reserved_count = max(count, CHUNK_IDS_RESERVED)
                first = await self.transaction(
                    lambda connection: reserve_chunk_ids(connection, reserved_count)
                )
                self._chunk_ids = range(first, first + reserved_count)
            taken, self._chunk_ids = self._chunk_ids[:count], self._chunk_ids[count:]
            return taken.start

    async def model_id(self) -> int:
        """The configured model's id; it is loaded only if it was never used with this database."""
        digest = self.embedder.digest
        known = await self.transaction(lambda connection: find_model(connection, digest))
        if known is not None:
            return known
        dimensions = await asyncio.to_thread(lambda: self.embedder.dimensions)
        location = await asyncio.to_thread(location_of, self.embedder.name)
        return await self.transaction(
            lambda connection: register_model(
                connection,
                name=self.embedder.name,
                digest=digest,
                dimensions=dimensions,
                location=location,
            )
        )

    async def model(self, model_id: int) -> Model:
        """The model that the database knows by this id, loaded if need be.

        Raises ModelMissing when its files are not here, and EmbeddingUnavailable.
        """
        async with self._loading:
            if (known := self._models.get(model_id)) is None:
                stored = await self.stored_model(model_id)
                known = self._models[model_id] = await self._open(stored)
            return known

    async def stored_model(self, model_id: int) -> StoredModel:
        return await self.transaction(lambda connection: read_model(connection, model_id))

    async def check_model(self, model_id: int) -> None:
        """Raise ModelMissing when the model can certainly not be loaded, without loading it."""
        if model_id not in self._models:
            stored = await self.stored_model(model_id)
            if stored.digest == self.embedder.digest:
                self._models[model_id] = Model(model_id, self.embedder, self.rounds)
            else:
                await asyncio.to_thread(find_known, stored)

    @property
    def embedded_count(self) -> int:
        """How many texts the models were given so far."""
        others = (
            model.rounds for model in self._models.values() if model.rounds is not self.rounds
        )
        return self.rounds.embedded_count + sum(rounds.embedded_count for rounds in others)

    async def _open(self, stored: StoredModel) -> Model:
        if stored.digest == self.embedder.digest:
            return Model(stored.id, self.embedder, self.rounds)
        embedder = await asyncio.to_thread(open_known, self.settings, stored)
        return Model(stored.id, embedder, RoundEmbedder(embedder))

    async def close(self) -> None:
        for model in self._models.values():
            await model.rounds.close()
        await self.rounds.close()
        await self.parsers.close()
        self._thread.shutdown(cancel_futures=True)


@asynccontextmanager
async def open_tools(
    settings: Settings, engine: AsyncEngine, embedder: Embedder | None = None
) -> AsyncGenerator[Tools]:
    """Load the model (in a thread, for it is slow) unless one is given; raises EmbeddingUnavailable."""
    if embedder is None:
        embedder = await asyncio.to_thread(open_embedder, settings)
    tools = Tools(settings, engine, embedder, ParserPool(settings), RoundEmbedder(embedder))
    try:
        yield tools
    finally:
        await tools.close()
