"""A run on many machines: Ray Data does the work ahead, and the ordinary run has the last word.

What is new or changed flows through the stages of `ingestion/cluster_stages.py`, each as wide as the
cluster: actors that read, parse and cut, that embed, that write. Whatever is left over (what cannot
be read, what others changed meanwhile, what is gone) the ordinary run settles, as it settles
everything on one machine.
"""

import asyncio
import gc
import logging
import os
import pickle
import sys
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from app.access import DEFAULT_TENANT_ID
from app.config import Settings
from app.db.collections import check_name, find_collection
from app.db.documents import SourceState
from app.db.vector_partitions import BULK_FROM_CHUNKS, LEAF_CHUNKS, begin_leaf, bulk_load
from app.embedding.loading import usable_cores
from app.errors import FootnoteError, InvalidInput, Unavailable
from ingestion.books import open_books
from ingestion.cluster_stages import (
    Assignment,
    Due,
    EmbeddingActor,
    Outcome,
    PreparingActor,
    Rows,
    WritingActor,
)
from ingestion.pipeline import Tools
from ingestion.runner import Order, Progress, Report, sync
from ingestion.sources.base import Item
from ingestion.sources.opening import is_path, open_source
from ingestion.writing import Shelf

Result = TypeVar("Result")
Known = Callable[[Sequence[str]], Awaitable[Mapping[str, SourceState]]]

BLOCK_DOCUMENTS = 32
BLOCK_BYTES = 8 * 1024 * 1024
"""What goes through the stages together, and is done again together when a node dies."""
WAVE_DOCUMENTS = 50_000
"""As many are planned at once; the driver's memory does not grow with the corpus."""

PARSE_SHARE, EMBED_SHARE, WRITE_SHARE = 0.3, 0.1, 0.1
"""Of a core, as Ray counts them. Every core gets one of each and whichever has work uses it; half of
the nodes still have room for all of them. Actors throughout: Ray ends the process of a task when it
has had none for a second, and ours takes longer than that to start."""
GPU_SHARE = 0.5
"""Two actors per GPU: one prepares its texts while the other computes."""

LOCAL_STORE_BYTES = 1024**3
SAMPLE_DOCUMENTS = 100
"""After so many the rest of the run is estimated from them."""
LEAF_PAUSE_SECONDS = 30.0

# --- the command's side ---------------------------------------------------------------------------


async def sync_on_cluster(
    order: Order, tools: Tools, progress: Progress, *, address: str | None, database_url: str
) -> Report:
    """As `sync` of the ordinary run, with the same result, on a cluster.

    `address` is "auto" or host:port of a cluster that this machine belongs to; without one, a
    cluster of this machine alone is started, and ended with the run. Raises what `sync` raises.
    """
    started = time.monotonic()
    check_name(order.collection)
    _check_reach(tools.settings, address)
    books = await open_books(order.collection, tools, is_rehearsal=False)
    assignment = Assignment(
        settings=tools.settings,
        database_url=database_url,
        shelf=await _shelf(order.collection, tools),
        pipeline_digest=books.pipeline_digest,
        selection=order.selection,
    )
    due = await _find_due(order, assignment, books.known)
    ahead = _Ahead(due, assignment, tools, progress)
    if due:
        progress.begin(len(due), sum(one.item.size_bytes or 0 for one in due))
        async with bulk_load(tools.engine, assignment.shelf.model_id), _cluster(address):
            await ahead.run()
        if ahead.written:
            await books.tidy()
    # What failed for good a moment ago need not be tried again; what was left over must be.
    retry_failed = order.retry_failed and ahead.left_count > 0
    report = await sync(replace(order, retry_failed=retry_failed), tools, progress)
    for one in ahead.written:
        report.counts["updated" if one.state and one.state.version_id else "added"] += 1
    report.counts["unchanged"] = max(0, report.counts["unchanged"] - len(ahead.written))
    report.chunks += ahead.chunks
    report.embedded += ahead.embedded
    report.took_seconds = time.monotonic() - started
    return report


class _Ahead:
    """The part of a run that the cluster does; `written` tells what became of it."""

    def __init__(
        self, due: Sequence[Due], assignment: Assignment, tools: Tools, progress: Progress
    ) -> None:
        self.written: list[Due] = []
        self.left_count = self.chunks = self.embedded = 0
        self._due = {one.item.uri: one for one in due}
        self._assignment = assignment
        self._tools = tools
        self._progress = progress
        self._weight = sum(one.weight for one in due)
        self._weight_done = self._documents_done = 0
        self._has_leaf = False
        self._leaf_chunks = 0
        self._leaf_tried = 0.0

    async def run(self) -> None:
        remaining = iter(self._due.values())
        while wave := list(islice(remaining, WAVE_DOCUMENTS)):
            with _translated_errors():
                blocks = _flow(wave, self._assignment)
                following: Callable[[], Rows | None] = partial(next, blocks, None)
                try:
                    while (block := await _unbroken(following)) is not None:
                        self._take(block)
                        await self._begin_leaf_if_it_pays()
                finally:
                    await _unbroken(blocks.close)
                    # What it referred to ends its own threads when it is collected.
                    del blocks, following
                    gc.collect()

    def _take(self, block: Rows) -> None:
        self.embedded += int(block["embedded"].sum())
        columns = (block["uri"], block["outcome"], block["chunks"])
        for uri, outcome, chunks in zip(*columns, strict=True):
            self._count(self._due[uri], outcome, int(chunks))

    def _count(self, one: Due, outcome: Outcome, chunks: int) -> None:
        if outcome == "written":
            self.written.append(one)
        elif outcome == "left":
            self.left_count += 1
        self._documents_done += 1
        self._weight_done += one.weight
        self.chunks += chunks
        self._leaf_chunks += chunks
        self._tools.chunks_count += chunks
        self._progress.advance(one.item)

    async def _begin_leaf_if_it_pays(self) -> None:
        """Estimate by what is done what is still to come; formats differ too much to guess it."""
        is_full = self._leaf_chunks >= LEAF_CHUNKS
        if (self._has_leaf and not is_full) or self._documents_done < SAMPLE_DOCUMENTS:
            return
        expected = self.chunks / self._weight_done * (self._weight - self._weight_done)
        is_early = time.monotonic() < self._leaf_tried + LEAF_PAUSE_SECONDS
        if expected < BULK_FROM_CHUNKS or is_early:
            return
        self._leaf_tried = time.monotonic()
        model_id = self._assignment.shelf.model_id
        if await begin_leaf(self._tools.engine, model_id, is_full=is_full):
            self._has_leaf, self._leaf_chunks = True, 0


def _check_reach(settings: Settings, address: str | None) -> None:
    if address is None:
        return
    if address.startswith("ray://"):
        raise InvalidInput(
            "Ray's client protocol cannot carry a run.",
            hint="Run the command on a machine of the cluster, with --ray auto or --ray HOST:PORT.",
        )
    if settings.database_url is None:
        raise InvalidInput(
            "The machines of a cluster cannot reach the embedded database.",
            hint="Set FOOTNOTE_DATABASE_URL to a PostgreSQL that all of them reach.",
        )


async def _shelf(name: str, tools: Tools) -> Shelf:
    found = await tools.transaction(
        lambda connection: find_collection(connection, DEFAULT_TENANT_ID, name)
    )
    if found is None:
        raise Unavailable(f"The collection {name} was deleted just now.", hint="Run it again.")
    return Shelf(found.tenant_id, found.id, found.model_id, found.settings)


async def _find_due(order: Order, assignment: Assignment, known_of: Known) -> list[Due]:
    """What is not unchanged at a glance, once, in the order of its source."""
    due: dict[str, Due] = {}
    for location in map(str, order.locations):
        source = open_source(location, order.selection, assignment.settings)
        try:
            known = await known_of(source.prefixes)
            listing = await source.changes(known)
        finally:
            await source.close()
        # A node has a working directory of its own.
        place = str(Path(location).expanduser().absolute()) if is_path(location) else location
        for item in listing.items:
            state = known.get(item.uri)
            if _is_due(item, state, assignment.pipeline_digest, order.retry_failed):
                due.setdefault(item.uri, Due(item, place, state))
    return list(due.values())


def _is_due(
    item: Item, state: SourceState | None, pipeline_digest: str, retry_failed: bool
) -> bool:
    if state is None or state.pipeline_digest != pipeline_digest or not item.is_as_noted(state):
        return True
    return state.status != "ready" and (state.status != "failed" or retry_failed)


# --- Ray ------------------------------------------------------------------------------------------


@asynccontextmanager
async def _cluster(address: str | None) -> AsyncGenerator[None]:
    ray = _import_ray()
    own: dict[str, Any] = {
        "num_cpus": usable_cores(),
        "object_store_memory": LOCAL_STORE_BYTES,
        "include_dashboard": False,
    }
    # Ray prints what its nodes suffer; standard output belongs to the command's own result.
    with redirect_stdout(sys.stderr):
        try:
            await asyncio.to_thread(
                ray.init,
                address=address or "local",
                log_to_driver=False,
                logging_level="error",
                **({} if address else own),
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise Unavailable(
                f"The Ray cluster does not answer: {str(error).splitlines()[0]}",
                hint="Check the address, and that `ray status` on this machine shows the cluster.",
            ) from error
        try:
            yield
        finally:
            await asyncio.to_thread(ray.shutdown)


_RAY_ENVIRONMENT = {
    # It reports to its makers unless it is told not to.
    "RAY_USAGE_STATS_ENABLED": "0",
    # What a later release will do by itself, and warns of.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A lost node is what it is made for, and nothing for the screen.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def _import_ray() -> Any:
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray  # noqa: PLC0415 - an extra, and heavy
        import ray.data  # noqa: PLC0415 - as above  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise InvalidInput(
            "Ray is not installed.", hint="Run: pip install 'footnote[ray]'"
        ) from error
    for handler in logging.getLogger("ray.data").handlers:
        # What it says on the screen it also writes into its files.
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    return ray


def _flow(wave: Sequence[Due], assignment: Assignment) -> Generator[Rows]:
    """The three stages over a wave of documents; gives blocks of what became of them."""
    ray = _import_ray()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    resources: Mapping[str, float] = ray.cluster_resources()
    cores, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
    blocks = [{"due": pickle.dumps(block)} for block in _blocks(wave)]
    if gpus:
        actors, runtime = int(gpus / GPU_SHARE), "torch"
        share = {"num_gpus": GPU_SHARE}
    else:
        actors, runtime = cores, assignment.settings.embedding_runtime
        share = {"num_cpus": EMBED_SHARE}
    flow = (
        ray.data.from_items(blocks, override_num_blocks=len(blocks))
        .map_batches(
            PreparingActor,
            compute=ray.data.ActorPoolStrategy(size=cores),
            fn_constructor_args=(assignment,),
            batch_size=None,
            num_cpus=PARSE_SHARE,
        )
        .map_batches(
            EmbeddingActor,
            compute=ray.data.ActorPoolStrategy(size=actors),
            fn_constructor_args=(assignment, runtime),
            batch_size=None,
            **share,
        )
        .map_batches(
            WritingActor,
            compute=ray.data.ActorPoolStrategy(size=cores),
            fn_constructor_args=(assignment,),
            batch_size=None,
            num_cpus=WRITE_SHARE,
        )
    )
    yield from flow.iter_batches(batch_size=None, prefetch_batches=0)


async def _unbroken(work: Callable[..., Result], *arguments: object) -> Result:
    """Do it in a thread, and to its end: Ray cannot be left while a thread is inside it."""
    doing = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        raise


def _blocks(wave: Iterable[Due]) -> Iterator[list[Due]]:
    block: list[Due] = []
    size_bytes = 0
    for one in wave:
        if block and (len(block) == BLOCK_DOCUMENTS or size_bytes + one.weight > BLOCK_BYTES):
            yield block
            block, size_bytes = [], 0
        block.append(one)
        size_bytes += one.weight
    if block:
        yield block


@contextmanager
def _translated_errors() -> Generator[None]:
    """Raise what a node raised of ours, and Unavailable for whatever became of Ray."""
    try:
        yield
    except FootnoteError:
        raise
    except Exception as error:
        cause: BaseException = error
        while inner := getattr(cause, "cause", None) or cause.__cause__:
            cause = inner
            if isinstance(cause, FootnoteError):
                raise cause from error
        words = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise Unavailable(
            f"The cluster gave up: {words}",
            hint="What is done is kept. Look into Ray's logs, then run the command again.",
        ) from error
