"""Layer 3: which passages a question found, by everything that decides what it finds.

A value holds ids, scores and content hashes. The passages themselves are read again, in the same
snapshot in which the caller's scope and the generations were read: what somebody may not see, or
is not there any more, cannot come out of it.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Protocol

from app.access import Caller
from app.cache.base import LayerName
from app.cache.code import code_digest
from app.cache.codec import pack, unpack
from app.cache.embeddings import FoldsCase
from app.cache.keys import ChunksKey, EmbeddingKey, digest_of, normalise
from app.cache.layer import Layer, Outcome, outcomes
from app.embedding.query_models import QueryModels
from app.errors import FootnoteError
from app.search.base import Hit, Searcher, SearchRequest, SearchResult
from app.search.beginning import Beginnings, Begun, Sight
from app.search.matching import languages_of, query_terms
from app.search.query import ParsedQuery, read_query
from app.search.scope import Scope

CODE = ("app.search", "app.terms", "app.embedding", "app.db.postings", "reranker")

Entry = tuple[int, float, float | None, bytes, tuple[Any, ...]]
"""Chunk id, score, similarity, content hash, and the entries of its copies."""


class GoingOn(Protocol):
    """A Searcher that goes on with what was begun, and ends it."""

    async def search(
        self,
        caller: Caller,
        request: SearchRequest,
        begun: AbstractAsyncContextManager[Begun] | None = None,
    ) -> SearchResult: ...


@asynccontextmanager
async def _handed_over(begun: Begun, held: AsyncExitStack) -> AsyncGenerator[Begun]:
    """What one task began, for another one to end."""
    async with held:
        yield begun


@dataclass(frozen=True, slots=True)
class Reranking:
    """Which model puts passages in order in this service, and how: what its settings decide."""

    own: str
    settings: tuple[Any, ...]


class ObservedSearcher:
    """Tells of each search what the layers had for it."""

    def __init__(self, inner: Searcher) -> None:
        self._inner = inner

    async def search(self, caller: Caller, request: SearchRequest) -> SearchResult:
        told: dict[LayerName, Outcome] = {"embedding": "off", "chunks": "off"}
        seen = outcomes.set(told)
        try:
            result = await self._inner.search(caller, request)
        finally:
            outcomes.reset(seen)
        explanation = result.explanation
        if explanation is not None and "cache" in explanation:
            explanation = {**explanation, "cache": told}
        return replace(result, cache={**told}, explanation=explanation)


class CachedSearcher:
    """A Searcher in front of another; what it cannot know it lets that one find."""

    def __init__(
        self,
        inner: GoingOn,
        beginnings: Beginnings,
        models: QueryModels,
        reranking: Reranking,
        layer: Layer,
        folds_case: FoldsCase,
    ) -> None:
        self._inner = inner
        self._beginnings = beginnings
        self._models = models
        self._reranking = reranking
        self._layer = layer
        self._folds_case = folds_case
        self._searching: dict[bytes, asyncio.Future[SearchResult]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def search(self, caller: Caller, request: SearchRequest) -> SearchResult:
        # An explanation tells of a search that was made; a model on trial serves nobody yet.
        if request.explain or request.candidate_model:
            return await self._inner.search(caller, request)
        query = read_query(request.query.encode("utf-8", "replace").decode())
        async with AsyncExitStack() as stack:
            begun = await stack.enter_async_context(
                self._beginnings.begin(caller, request, query.text)
            )
            scope, question = begun.sight.scope, begun.question
            key = self._key(caller, request, query, scope)
            [packed] = await self._layer.get([key.digest])
            known = None if packed is None else await _recalled(packed, begun.sight)
            if known is not None:
                self._layer.note("hit")
                if question is None:
                    return replace(known, scope=scope)
                await begun.sight.close()
                vector, embedder = await question.vector()
                return replace(known, scope=scope, query_vector=vector, embedder=embedder)
            self._layer.note("miss")
            self._layer.explain_miss(*_subject_of(key))
            # One search of all that miss the same at the same time; none of them can end it. Whoever
            # comes later saw the same generations as the first one, before it searched.
            searching = self._searching.get(key.digest)
            if searching is None:
                handed_over = _handed_over(begun, stack.pop_all())
                searching = self._begin(key.digest, caller, request, query, handed_over)
            else:
                self._layer.count("joined")
                await begun.sight.close()
                if question is not None:
                    # Whatever is wrong with it, the search says better.
                    with suppress(FootnoteError):
                        await question.vector()
        return await asyncio.shield(searching)

    def _begin(
        self,
        digest: bytes,
        caller: Caller,
        request: SearchRequest,
        query: ParsedQuery,
        begun: AbstractAsyncContextManager[Begun],
    ) -> "asyncio.Future[SearchResult]":
        found = asyncio.get_running_loop().create_future()
        found.add_done_callback(_seen)
        self._searching[digest] = found

        async def search() -> None:
            try:
                result = await self._search(caller, request, begun)
                found.set_result(result)
                # Nobody waits for that; whoever asks the same meanwhile has the result.
                await self._keep(caller, request, query, result)
            except BaseException as error:
                if found.done():
                    raise
                found.set_exception(error)
            finally:
                del self._searching[digest]

        task = asyncio.create_task(search())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return found

    async def _search(
        self, caller: Caller, request: SearchRequest, begun: AbstractAsyncContextManager[Begun]
    ) -> SearchResult:
        started = perf_counter()
        result = await self._inner.search(caller, request, begun)
        self._layer.count("computed")
        self._layer.count("computed_us", int((perf_counter() - started) * 1_000_000))
        return result

    async def _keep(
        self, caller: Caller, request: SearchRequest, query: ParsedQuery, result: SearchResult
    ) -> None:
        if result.scope is not None and _is_undisturbed(result):
            # Under the generations that this very search has seen.
            key = self._key(caller, request, query, result.scope)
            self._layer.remember(*_subject_of(key))
            await self._layer.put(str(caller.tenant_id), {key.digest: _packed(result)})

    def _key(
        self, caller: Caller, request: SearchRequest, query: ParsedQuery, scope: Scope
    ) -> ChunksKey:
        groups = scope.parameters.get("groups")
        text = normalise(query.text, fold_case=self._folds_case.get(scope.model.digest, False))
        embedding = EmbeddingKey(self._models.query_digest(scope.model.digest), "query", text)
        choices = [(one.reranker or "", one.token_vectors) for one in scope.collections]
        return ChunksKey(
            embedding=embedding.digest,
            tenant=caller.tenant_id,
            access=(None if groups is None else tuple(groups), request.filters),
            collections=[(one.id, one.generation) for one in scope.collections],
            settings=(
                request.mode,
                request.limit,
                request.rerank,
                request.collapse_duplicates,
                choices,
                self._reranking.own,
                self._reranking.settings,
                code_digest(*CODE),
            ),
            wording=self._wording(request, query, scope),
        )

    def _wording(self, request: SearchRequest, query: ParsedQuery, scope: Scope) -> tuple[Any, ...]:
        """What of the query decides besides its vector: its terms and operators.

        And all of it, where a model reads it together with the passages.
        """
        terms: Mapping[str, int] = {}
        if request.mode != "vector":
            terms = query_terms(query.text, languages_of(scope))
        is_read = bool(self._reranking.own) or any(
            one.reranker or one.token_vectors for one in scope.collections
        )
        return (
            tuple(terms.items()),
            query.phrases,
            query.excluded,
            query.prefixes,
            query.is_question,
            query.text if is_read else None,
        )


def _seen(found: "asyncio.Future[SearchResult]") -> None:
    if not found.cancelled():
        found.exception()  # also when nobody waits any more


def _subject_of(key: ChunksKey) -> tuple[bytes, Mapping[str, bytes]]:
    return digest_of(key.embedding, key.wording), {
        "scope": digest_of(key.tenant, key.access, [one for one, _ in key.collections]),
        "settings": digest_of(key.settings),
        "evidence_changed": digest_of(key.collections),
    }


def _is_undisturbed(result: SearchResult) -> bool:
    """Whether it is what the search would find again: no reranker was left out."""
    return not isinstance((result.explanation or {}).get("rerank"), str)


def _packed(result: SearchResult) -> bytes:
    return pack(
        (
            [_entry(hit) for hit in result.hits],
            list(result.query_terms),
            result.coverage,
            result.explanation,
        )
    )


def _entry(hit: Hit) -> Entry:
    copies = tuple(_entry(copy) for copy in hit.copies)
    return hit.chunk_id, hit.score, hit.similarity, hit.content_hash, copies


async def _recalled(packed: bytes, sight: Sight) -> SearchResult | None:
    """The result as it was, of the passages as they are; None when they are not the same."""
    try:
        entries, query_terms_, coverage, explanation = unpack(packed)
        wanted = {one[0]: (one[1], one[2]) for entry in entries for one in (entry, *entry[4])}
    except (ValueError, TypeError, IndexError):
        return None
    found: Mapping[int, Hit] = await sight.read(wanted) if wanted else {}
    hits = [_hit(entry, found) for entry in entries]
    if any(hit is None for hit in hits):
        return None
    return SearchResult(
        hits=[hit for hit in hits if hit is not None],
        query_terms=query_terms_,
        coverage=coverage,
        explanation=explanation,
    )


def _hit(entry: Entry, found: Mapping[int, Hit]) -> Hit | None:
    chunk_id, _, _, content_hash, copies = entry
    passage = found.get(chunk_id)
    if passage is None or passage.content_hash != content_hash:
        return None
    if not copies:
        return passage
    read = [_hit(copy, found) for copy in copies]
    if any(copy is None for copy in read):
        return None
    return replace(passage, copies=tuple(copy for copy in read if copy is not None))
