"""How a document becomes searchable."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.config import Settings
from app.db.collection_settings import CollectionSettings
from app.db.documents import reserve_chunk_ids
from app.db.transactions import in_transaction
from app.db.vectors import find_model, known_vectors, register_model
from app.embedding.base import Embedder, Vectors
from app.embedding.loading import open_embedder
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
from ingestion.types import Chunking, ParsedDocument, embedded_text
from ingestion.writing import NewVersion, Passages, Shelf

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
    vectors = await embed(passages, shelf, tools, report)
    reach("pipeline.embedded")
    report("writing", len(passages.chunks), len(passages.chunks))
    return await store(original, parsed, passages, vectors, shelf, tools, write)


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
        return await tools.compute(cut, parsed, tools.embedder, chunking)


async def embed(
    passages: Passages, shelf: Shelf, tools: "Tools", report: Report = _silent
) -> Vectors:
    """Vectors of the passages, in their order; only of texts that are new to the tenant."""

    async def look_up(connection: AsyncConnection) -> dict[bytes, Vectors]:
        return await known_vectors(
            connection, shelf.tenant_id, shelf.model_id, sorted(set(passages.hashes))
        )

    with stage("ingest", "embed"):
        vectors = await tools.transaction(look_up)
        new = new_texts(passages.hashes, passages.texts, vectors)
        CHUNKS_REUSED.inc(len(passages.hashes) - len(new))
        known_count = len(passages.texts) - len(new)

        def tell(done: int) -> None:
            report("embedding", known_count + done, len(passages.texts))

        tell(0)
        made = await tools.rounds.embed(list(new.values()), tell)
        vectors.update(zip(new, made, strict=True))
        return assemble(passages.hashes, vectors, tools.embedder.dimensions)


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
        version = NewVersion(
            sha256=original.sha256,
            pipeline_digest=tools.digest(shelf.settings),
            parsed=parsed,
            passages=passages,
            vectors=vectors,
            first_chunk_id=await tools.chunk_ids(len(passages.chunks)),
            given=original.given,
        )
        reach("pipeline.ids_reserved")
        result = await tools.transaction(lambda connection: write(connection, version))
        reach("pipeline.committed")
        tools.chunks_count += len(passages.chunks)
        return result


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
        signature=sign(parsed.text),
    )


def digest_of(embedder: Embedder, chunking: Chunking, own: CollectionSettings) -> str:
    """Names everything that shapes a version: equal digests make equal versions of an original."""
    versions = [PARSING_VERSION, CHUNKING_VERSION, TERMS_VERSION]
    shaped = [chunking.tokens, chunking.overlap, chunking.strategy, own.personal_data]
    if own.personal_data != "off":
        shaped.append(SCAN_VERSION)
    return hashlib.sha256(repr([*versions, *shaped, embedder.digest]).encode()).hexdigest()


# --- what it works with ---------------------------------------------------------------------------

CHUNK_IDS_RESERVED = 1000
DATABASE_CONNECTIONS = 4
DATABASE_PATIENCE_SECONDS = 30.0


class Tools:
    """The pipeline's parser, model and database, for as long as `open_tools` is open.

    `chunks_count` counts what has gone through it so far.
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
        return digest_of(self.embedder, self.chunking(own), own)

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
        """The id of the model, which is loaded only if it was never used with this database."""
        digest = self.embedder.digest
        known = await self.transaction(lambda connection: find_model(connection, digest))
        if known is not None:
            return known
        dimensions = await asyncio.to_thread(lambda: self.embedder.dimensions)
        return await self.transaction(
            lambda connection: register_model(
                connection, name=self.embedder.name, digest=digest, dimensions=dimensions
            )
        )

    async def close(self) -> None:
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
