"""The models that questions are embedded with: the configured one, and those of other collections.

Vectors of a question and of passages are comparable only if one model made both. Which one that is,
only the database knows, at the moment of the search; so a question is embedded with the model that
was right the last time, while that is being found out, and again if it has changed since.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Hashable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from app.config import Settings
from app.db.vectors import StoredModel
from app.embedding.base import Embedder, QueryEmbedding, Vectors, vectors_digest
from app.embedding.known import ModelMissing, find_known
from app.embedding.loading import open_for_questions, query_threads, usable_cores
from app.embedding.model_folder import ModelIdentity, identify
from app.embedding.query import serve_queries
from app.errors import EmbeddingUnavailable, FootnoteError

LOADING_PATIENCE_SECONDS = 5.0
"""So long a search waits for a model that is being loaded; an export that is there takes one."""

RETRY_SECONDS = 30.0
"""So long a model that could not be loaded is not tried again."""

GUESSES_KEPT = 10_000

log = structlog.get_logger(__name__)

FindModel = Callable[[int], Awaitable[StoredModel]]
Serve = Callable[[Embedder], QueryEmbedding]
"""Puts a loaded model behind the event loop."""


class QueryModels:
    """Loaded models by their digest. `default` is the configured one, which always stays.

    Of the others the `embedding_models_loaded` used last stay. Belongs to one event loop.
    """

    def __init__(
        self,
        settings: Settings,
        default: QueryEmbedding,
        find_model: FindModel,
        serve: Serve | None = None,
    ) -> None:
        self.default = default
        self._settings = settings
        self._serve = serve or partial(serve_queries, settings)
        self._find_model = find_model
        self._loaded: OrderedDict[str, QueryEmbedding] = OrderedDict()
        self._loading: dict[str, asyncio.Task[QueryEmbedding]] = {}
        self._failed: dict[str, tuple[float, FootnoteError]] = {}
        self._found_here: set[str] = set()
        self._guesses: OrderedDict[Hashable, str] = OrderedDict()

    async def get(self, model_id: int, digest: str) -> QueryEmbedding:
        """The model, loaded if need be.

        Raises ModelMissing when its files are not here, and EmbeddingUnavailable when it cannot
        be loaded or is still being loaded.
        """
        if (ready := self._ready(digest)) is not None:
            return ready
        failed_at, error = self._failed.get(digest, (0.0, None))
        if error is not None and time.monotonic() < failed_at + RETRY_SECONDS:
            raise error
        task = self._loading.get(digest) or self._load(
            digest, partial(self._open_stored, digest, partial(self._find_model, model_id))
        )
        done, _ = await asyncio.wait({task}, timeout=LOADING_PATIENCE_SECONDS)
        if not done:
            raise EmbeddingUnavailable(
                "The collection's embedding model is being loaded.", hint="Try again in a moment."
            )
        return task.result()

    async def load_named(self, name: str) -> "NamedModel":
        """A model of this machine that no collection need have yet, ready for questions.

        Waits as long as that takes: it is exported first. Raises EmbeddingUnavailable.
        """
        found = await asyncio.to_thread(identify, name)
        embedder = self._ready(found.digest)
        if embedder is None:
            task = self._loading.get(found.digest) or self._load(
                found.digest, lambda: asyncio.to_thread(self._open, found)
            )
            await asyncio.wait({task})
            embedder = task.result()
        return NamedModel(found.digest, embedder.embedder.dimensions, found.location)

    def query_digest(self, digest: str) -> str:
        """What decides the vector of a question to a model, as far as that is loaded."""
        ready = self._ready(digest)
        return digest if ready is None else vectors_digest(ready.embedder, "query")

    async def is_here(self, model_id: int) -> bool:
        """Whether the model can be found on this machine, loaded or not."""
        model = await self._find_model(model_id)
        if self._ready(model.digest) is None and model.digest not in self._found_here:
            try:
                await asyncio.to_thread(find_known, model)
            except ModelMissing:
                return False
            self._found_here.add(model.digest)
        return True

    async def preload(self, models: Iterable[StoredModel]) -> None:
        """Load those that are not, the most important first, as long as there is room."""
        for model in list(models)[: self._settings.embedding_models_loaded]:
            failed_at, _ = self._failed.get(model.digest, (0.0, None))
            if self._ready(model.digest) is None and time.monotonic() > failed_at + RETRY_SECONDS:
                task = self._loading.get(model.digest) or self._load(
                    model.digest, partial(self._open_stored, model.digest, partial(_found, model))
                )
                await asyncio.wait({task})

    @asynccontextmanager
    async def question(self, text: str, place: Hashable) -> AsyncGenerator["Question"]:
        """The embedding of a question to `place` under way; ended with the search, however that ends.

        `place` is whatever had one model the last time.
        """
        question = Question(self, text, place)
        question.begin(self._ready(self._guesses.get(place, "")) or self.default)
        try:
            yield question
        finally:
            question.end()

    def remember(self, place: Hashable, digest: str) -> None:
        self._guesses[place] = digest
        self._guesses.move_to_end(place)
        while len(self._guesses) > GUESSES_KEPT:
            self._guesses.popitem(last=False)

    async def close(self) -> None:
        for task in self._loading.values():
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        for embedder in (self.default, *self._loaded.values()):
            embedder.close()

    def _ready(self, digest: str) -> QueryEmbedding | None:
        if digest == self.default.embedder.digest:
            return self.default
        if (embedder := self._loaded.get(digest)) is not None:
            self._loaded.move_to_end(digest)
        return embedder

    def _load(
        self, digest: str, load: Callable[[], Coroutine[Any, Any, QueryEmbedding]]
    ) -> "asyncio.Task[QueryEmbedding]":
        task = self._loading[digest] = asyncio.create_task(load())
        task.add_done_callback(lambda done: self._note(digest, done))
        return task

    async def _open_stored(
        self, digest: str, find: Callable[[], Awaitable[StoredModel]]
    ) -> QueryEmbedding:
        model = await find()
        if model.digest != digest:
            raise ModelMissing(f"The embedding model {model.name} was registered anew just now.")
        return await asyncio.to_thread(lambda: self._open(find_known(model)))

    def _open(self, model: ModelIdentity) -> QueryEmbedding:
        threads = max(1, usable_cores() // query_threads(self._settings))
        embedder = open_for_questions(self._settings, model, threads=threads)
        log.info("embedding_model_loaded", model=model.name)
        return self._serve(embedder)

    def _note(self, digest: str, done: "asyncio.Task[QueryEmbedding]") -> None:
        del self._loading[digest]
        if done.cancelled():
            return
        if (error := done.exception()) is None:
            self._failed.pop(digest, None)
            self._loaded[digest] = done.result()
            while len(self._loaded) > self._settings.embedding_models_loaded:
                # Not closed: whoever embeds with it just now has it until he is done.
                self._loaded.popitem(last=False)
        elif isinstance(error, FootnoteError):
            self._failed[digest] = (time.monotonic(), error)
            log.warning("embedding_model_not_loaded", digest=digest, reason=error.detail)


@dataclass(frozen=True, slots=True)
class NamedModel:
    """What is registered of a model besides its name."""

    digest: str
    dimensions: int
    location: str | None


class Question:
    """A question on its way to a vector; `model` is the one that was guessed until `settle`."""

    def __init__(self, models: QueryModels, text: str, place: Hashable) -> None:
        self._models = models
        self._text = text
        self._place = place

    def begin(self, guessed: QueryEmbedding) -> None:
        self._digest = guessed.embedder.digest
        self._task = asyncio.create_task(self._embed(guessed))

    def settle(self, model_id: int, digest: str) -> None:
        """Say which model it is; embeds anew when that is another than was guessed."""
        self._models.remember(self._place, digest)
        if digest != self._digest:
            self.end()
            self._digest = digest
            self._task = asyncio.create_task(self._embed_by(model_id, digest))

    async def vector(self) -> tuple[Vectors, QueryEmbedding]:
        """The question's vector, float32, shape (dimensions,), and the model that made it.

        Raises what `QueryModels.get` and `QueryEmbedding.embed` raise.
        """
        return await self._task

    def end(self) -> None:
        if not self._task.done():
            self._task.cancel()
        elif not self._task.cancelled():
            self._task.exception()  # seen, even when the search failed before it was needed

    async def _embed_by(self, model_id: int, digest: str) -> tuple[Vectors, QueryEmbedding]:
        return await self._embed(await self._models.get(model_id, digest))

    async def _embed(self, embedder: QueryEmbedding) -> tuple[Vectors, QueryEmbedding]:
        return (await embedder.embed([self._text], "query"))[0], embedder


async def _found(model: StoredModel) -> StoredModel:
    return model
