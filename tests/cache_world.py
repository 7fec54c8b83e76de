"""A world in which everything that a cached value depends on changes at random, and an oracle.

Searching, writing and embedding are plain functions of the world as it is now. Numbers of
collections and passages are each tenant's own here, so that a key which forgets whose they are
meets somebody else's.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from uuid import UUID

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from app.access import Caller
from app.answering.base import (
    Answer,
    AnswerEvent,
    Brief,
    Citation,
    CitationFound,
    Finished,
    Question,
    Sentence,
    SourcesFound,
    TextDelta,
    Usage,
)
from app.cache.answers import CachedWriter
from app.cache.base import LAYERS, Bounds
from app.cache.chunks import CachedSearcher, ObservedSearcher, Reranking
from app.cache.embeddings import CachedEmbedding
from app.cache.in_process import InProcessStore
from app.cache.judging import Judge
from app.cache.keys import normalise
from app.cache.layer import Layer
from app.cache.paraphrases import Paraphrases
from app.cache.single_flight import Flights
from app.cache.statistics import Statistics
from app.cache.tallies import InProcessTallies
from app.llm.base import GenerationOptions, Message
from app.search.base import Hit, SearchRequest, SearchResult
from app.search.beginning import Score
from app.search.matching import query_terms
from app.search.query import read_query
from app.search.scope import Scope, ScopedCollection, ScopedModel

TENANTS = (1, 2)
GROUPS = ("board", "staff")
WORDINGS = ("who pays", "who is paying")
"""Of one question: where paraphrases may share an answer, these may."""
QUESTIONS = ("What is IT?", "what is it?", *WORDINGS, "WHO pays", "does he pay", "who pays -rent")
TEXTS = ("it pays", "who pays rent", "rent is IT")
HISTORIES = ((), (Message("user", "rent?"), Message("assistant", "Yes.")))
TEMPERATURES = (0.0, 0.5)
DIMENSIONS = 4


@dataclass
class Document:
    """One passage; `place` is where it stands in its document, which no content hash tells."""

    chunk_id: int
    text: str
    groups: frozenset[str] = frozenset()
    place: int = 0

    @property
    def content_hash(self) -> bytes:
        return hashlib.sha256(self.text.encode()).digest()


@dataclass
class Shelf:
    generation: int = 0
    documents: list[Document] = field(default_factory=list[Document])
    next_id: int = 1


@dataclass
class World:
    shelves: dict[int, Shelf] = field(
        default_factory=lambda: {tenant: Shelf() for tenant in TENANTS}
    )
    embedding_model: str = "embedding-1"
    query_form: str = "exact"
    weights: str = "weights-1"
    prompt: str = "1"
    options: GenerationOptions = field(default_factory=GenerationOptions)
    on_search: list[Any] = field(default_factory=list[Any])
    embedding: Any = None

    # --- as the searcher of the product ----------------------------------------------------------

    def scope(self, caller: Caller) -> Scope:
        shelf = self.shelves[caller.tenant_id]
        restricted = caller.groups is not None and any(one.groups for one in shelf.documents)
        model = ScopedModel(1, self.embedding_model, self.embedding_model, DIMENSIONS, 1)
        own = ScopedCollection(
            1, "books", shelf.generation, 1, 1, ["english"], restricted, None, False, False
        )
        return Scope(
            model,
            [own],
            "groups" if restricted else None,
            {"groups": sorted(caller.groups or ())} if restricted else {},
        )

    def visible(self, caller: Caller) -> list[Document]:
        documents = self.shelves[caller.tenant_id].documents
        if caller.groups is None:
            return documents
        return [one for one in documents if not one.groups or one.groups & caller.groups]

    def hit(self, caller: Caller, document: Document) -> Hit:
        return Hit(
            chunk_id=document.chunk_id,
            document_id=UUID(int=caller.tenant_id),
            collection="books",
            title="Title",
            uri=f"test:{caller.tenant_id}",
            text=document.text,
            heading=(),
            page=None,
            start=document.place,
            end=document.place + len(document.text),
            score=0.0,
            content_hash=document.content_hash,
            similarity=None,
        )

    def ranked(self, caller: Caller, request: SearchRequest) -> list[Hit]:
        query = read_query(request.query)
        terms = dict(query_terms(query.text, ["english"]))
        vector = self.vector(query.text, "query")
        hits: list[Hit] = []
        for one in self.visible(caller):
            if any(word in one.text for word in query.excluded):
                continue
            held = sum(term in one.text.lower() for term in terms) + len(terms) / 10
            alike = float(vector[len(one.text) % DIMENSIONS])
            # Statistics of the collection have their part in every score.
            score = held + alike + len(self.shelves[caller.tenant_id].documents) / 100
            score += caller.tenant_id / 1000
            hits.append(replace(self.hit(caller, one), score=score, similarity=alike))
        hits.sort(key=lambda hit: (-hit.score, hit.chunk_id))
        return hits[: request.limit]

    def vector(self, text: str, kind: str) -> Any:
        form = self.query_form if kind == "query" else "exact"
        seed = f"{self.embedding_model}\0{form}\0{kind}\0{normalise(text)}".encode()
        drawn = np.frombuffer(hashlib.sha256(seed).digest()[: 2 * DIMENSIONS], "<u2")
        return (drawn / 65536).astype(np.float32)

    def query_digest(self, digest: str) -> str:
        return digest if self.query_form == "exact" else f"{digest} in {self.query_form}"

    async def search(
        self, caller: Caller, request: SearchRequest, begun: Any = None
    ) -> SearchResult:
        async with begun:
            return await self._search(caller, request)

    async def _search(self, caller: Caller, request: SearchRequest) -> SearchResult:
        # The product reads on in the snapshot that was begun; here the world may have changed since.
        for change in self.on_search:
            change()
        self.on_search.clear()
        return SearchResult(
            hits=self.ranked(caller, request),
            query_vector=self.vector(read_query(request.query).text, "query"),
            query_terms=list(query_terms(request.query, ["english"])),
            scope=self.scope(caller),
        )

    @asynccontextmanager
    async def begin(
        self, caller: Caller, request: SearchRequest, text: str
    ) -> AsyncGenerator["Begun"]:
        yield Begun(_Question(self.embedding, text), Glance(self, caller))

    # --- as the writer ---------------------------------------------------------------------------

    async def digest(self) -> str:
        return self.weights

    def answered(self, caller: Caller, brief: Brief) -> list[AnswerEvent]:
        """What this tenant's model says, word for word out of all that it is given."""
        question, hits = brief.question, brief.result.hits
        said = "|".join(
            [
                f"tenant {caller.tenant_id}",
                self.weights,
                question.prompt_version,
                normalise(question.text),
                repr(question.history),
                repr(brief.options),
                *(hit.text for hit in hits),
            ]
        )
        citations = [
            Citation(
                marker=place,
                chunk_id=hit.chunk_id,
                document_id=hit.document_id,
                title=hit.title,
                uri=hit.uri,
                page=None,
                start=hit.start,
                end=hit.end,
                quote=hit.text,
            )
            for place, hit in enumerate(hits, 1)
        ]
        answer = Answer(
            text=said,
            citations=citations,
            sentences=[Sentence(said, tuple(range(1, len(hits) + 1)), True)],
            grounded=True,
            mode="generated" if hits else "declined",
            model="model",
            cache={},
            usage=Usage(3, 2),
        )
        return [
            SourcesFound(hits),
            TextDelta(said[:5]),
            *map(CitationFound, citations),
            TextDelta(said[5:]),
            Finished(answer),
        ]

    async def write(self, caller: Caller, brief: Brief) -> AsyncGenerator[AnswerEvent]:
        for event in self.answered(caller, brief):
            yield event


class Glance:
    def __init__(self, world: World, caller: Caller) -> None:
        self._world = world
        self._caller = caller
        self.scope = world.scope(caller)

    async def read(self, scores: Mapping[int, Score]) -> Mapping[int, Hit]:
        found: dict[int, Hit] = {}
        for one in self._world.visible(self._caller):
            if one.chunk_id in scores:
                score, similarity = scores[one.chunk_id]
                hit = self._world.hit(self._caller, one)
                found[one.chunk_id] = replace(hit, score=score, similarity=similarity)
        return found

    async def close(self) -> None:
        pass


@dataclass
class Begun:
    question: Any
    sight: Glance


class Embedding:
    """The QueryEmbedding of whatever model the world has now."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def embedder(self) -> Any:
        return self

    @property
    def digest(self) -> str:
        return self._world.embedding_model

    @property
    def query_digest(self) -> str:
        return self._world.query_digest(self.digest)

    dimensions = DIMENSIONS

    async def embed(self, texts: Sequence[str], kind: str) -> Any:
        return np.stack([self._world.vector(text, kind) for text in texts])

    async def tokens(self, query: str) -> None:
        return None

    def close(self) -> None:
        pass


class Models:
    """Of QueryModels what the cached searcher uses."""

    def __init__(self, world: World, embedding: CachedEmbedding) -> None:
        self._world = world
        self.default = embedding

    def query_digest(self, digest: str) -> str:
        return self._world.query_digest(digest)


class _Question:
    def __init__(self, embedding: CachedEmbedding, text: str) -> None:
        self._embedding = embedding
        self._text = text

    async def vector(self) -> Any:
        return (await self._embedding.embed([self._text], "query"))[0], self._embedding


class Ledger:
    def book_cached(self, *_: Any) -> None:
        pass


class Interleavings(RuleBasedStateMachine):
    """Changes and questions in any order; every answer is that of the world as it is now."""

    outcomes: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.loop = LOOP
        self.world = world = World()
        large = Bounds(3600, 10**8, 10**8, 10**7)
        store = InProcessStore(dict.fromkeys(LAYERS, large))
        statistics = Statistics()
        folds: dict[str, bool] = {}
        layers = {name: Layer(name, store, statistics) for name in LAYERS}
        self.embedding = CachedEmbedding(Embedding(world), layers["embedding"], folds)  # pyright: ignore[reportArgumentType]
        world.embedding = self.embedding
        self.reranking = Reranking("", ("first",))
        models: Any = Models(world, self.embedding)
        own: Any = world
        searcher = CachedSearcher(own, own, models, self.reranking, layers["chunks"], folds)
        self.searcher = ObservedSearcher(searcher)
        ledger: Any = Ledger()
        layer = layers["answer"]
        judge = Judge(InProcessTallies(), share=0.0)
        # Everything is near here: what two wordings are told apart by is their words alone.
        paraphrases = Paraphrases(layer, self.embedding, judge, similarity=0.0)
        self.writer = CachedWriter(world, self.embedding, ledger, layer, Flights(None), paraphrases)
        self.asked: set[tuple[int, frozenset[str] | None, str]] = set()

    @initialize()
    def begin(self) -> None:
        for tenant in TENANTS:
            for text in TEXTS[:2]:
                self._insert(tenant, text, frozenset())

    # --- what changes ----------------------------------------------------------------------------

    @rule(
        tenant=st.sampled_from(TENANTS),
        text=st.sampled_from(TEXTS),
        groups=st.frozensets(st.sampled_from(GROUPS), max_size=1),
    )
    def insert(self, tenant: int, text: str, groups: frozenset[str]) -> None:
        if len(self.world.shelves[tenant].documents) < 4:
            self._insert(tenant, text, groups)

    @rule(tenant=st.sampled_from(TENANTS), which=st.integers(0, 3), text=st.sampled_from(TEXTS))
    def edit(self, tenant: int, which: int, text: str) -> None:
        self._change(tenant, which, text=text)

    @rule(tenant=st.sampled_from(TENANTS), which=st.integers(0, 3), place=st.integers(0, 3))
    def move(self, tenant: int, which: int, place: int) -> None:
        """Something above the passage was changed."""
        self._change(tenant, which, place=place)

    @rule(
        tenant=st.sampled_from(TENANTS),
        which=st.integers(0, 3),
        groups=st.frozensets(st.sampled_from(GROUPS), max_size=1),
    )
    def revoke(self, tenant: int, which: int, groups: frozenset[str]) -> None:
        self._change(tenant, which, groups=groups)

    @rule(tenant=st.sampled_from(TENANTS), which=st.integers(0, 3))
    def delete(self, tenant: int, which: int) -> None:
        shelf = self.world.shelves[tenant]
        if which < len(shelf.documents):
            del shelf.documents[which]
            shelf.generation += 1

    @rule(tenant=st.sampled_from(TENANTS), which=st.integers(0, 3), text=st.sampled_from(TEXTS))
    def edit_during_the_next_search(self, tenant: int, which: int, text: str) -> None:
        self.world.on_search.append(lambda: self._change(tenant, which, text=text))

    @rule(
        name=st.sampled_from(["embedding-1", "embedding-2"]),
        form=st.sampled_from(["exact", "int8"]),
    )
    def switch_embedding_model(self, name: str, form: str) -> None:
        """Or the form in which it computes questions, of which no generation tells."""
        self.world.query_form = form
        if name != self.world.embedding_model:
            self.world.embedding_model = name
            for shelf in self.world.shelves.values():
                shelf.generation += 1

    @rule(name=st.sampled_from(["weights-1", "weights-2"]))
    def switch_model(self, name: str) -> None:
        self.world.weights = name

    @rule(version=st.sampled_from(["1", "2"]))
    def change_prompt(self, version: str) -> None:
        self.world.prompt = version

    @rule(temperature=st.sampled_from(TEMPERATURES))
    def change_sampling(self, temperature: float) -> None:
        self.world.options = GenerationOptions(temperature=temperature)

    # --- what is asked ---------------------------------------------------------------------------

    @rule(
        tenant=st.sampled_from(TENANTS),
        groups=st.none() | st.frozensets(st.sampled_from(GROUPS)),
        text=st.sampled_from(QUESTIONS),
        history=st.sampled_from(HISTORIES),
        limit=st.sampled_from([1, 3]),
    )
    def ask(
        self,
        tenant: int,
        groups: frozenset[str] | None,
        text: str,
        history: tuple[Message, ...],
        limit: int,
    ) -> None:
        caller = Caller(tenant, frozenset({"read"}), groups=groups)
        self.loop.run_until_complete(self._ask(caller, text, history, limit))

    @rule(
        tenant=st.sampled_from(TENANTS),
        callers=st.lists(
            st.none() | st.frozensets(st.sampled_from(GROUPS)), min_size=2, max_size=3
        ),
        text=st.sampled_from(QUESTIONS),
    )
    def ask_in_turn(self, tenant: int, callers: list[frozenset[str] | None], text: str) -> None:
        """The same question by several callers, with no change in between."""
        for groups in callers:
            self.ask(tenant, groups, text, HISTORIES[0], 3)

    @rule(
        tenant=st.sampled_from(TENANTS),
        asked=st.lists(
            st.tuples(
                st.none() | st.frozensets(st.sampled_from(GROUPS)),
                st.sampled_from(WORDINGS),
                st.sampled_from(TEMPERATURES),
            ),
            min_size=2,
            max_size=3,
        ),
    )
    def ask_in_other_words(
        self, tenant: int, asked: list[tuple[frozenset[str] | None, str, float]]
    ) -> None:
        for groups, text, temperature in asked:
            self.change_sampling(temperature)
            self.ask(tenant, groups, text, HISTORIES[0], 3)

    @rule(
        texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3),
        kind=st.sampled_from(["query", "document"]),
    )
    def embed(self, texts: list[str], kind: Any) -> None:
        vectors = self.loop.run_until_complete(self.embedding.embed(texts, kind))
        expected = np.stack([self.world.vector(text, kind) for text in texts])
        assert np.array_equal(vectors, expected), "a vector of another text, kind or model"

    async def _ask(
        self, caller: Caller, text: str, history: tuple[Message, ...], limit: int
    ) -> None:
        request = SearchRequest(text, ("books",), limit=limit)
        result = await self.searcher.search(caller, request)
        expected = self.world.ranked(caller, request)
        assert list(result.hits) == expected, "passages that a search would not find now"
        vector = self.world.vector(read_query(text).text, "query")
        assert np.array_equal(result.query_vector, vector), "another question's vector"
        self._count("chunks", result.cache["chunks"])
        question = Question(text, ("books",), history, prompt_version=self.world.prompt)
        model: Any = self.world
        brief = Brief(question, text, result, model, self.world.options)
        async with aclosing(self.writer.write(caller, brief)) as writing:
            events = [event async for event in writing]
        told = events[-1]
        assert isinstance(told, Finished)
        other = told.answer.paraphrase_of
        if other is not None:
            # It is the answer to another wording, which somebody with the same rights asked.
            assert {text, other} == set(WORDINGS), "an answer to another question"
            assert (caller.tenant_id, caller.groups, other) in self.asked, "a foreign question"
            brief = replace(brief, question=replace(question, text=other))
            self._count("paraphrase", told.answer.cache["answer"])
        self.asked.add((caller.tenant_id, caller.groups, text))
        wanted = self.world.answered(caller, brief)
        assert _in_whole_pieces(events[:-1]) == _in_whole_pieces(wanted[:-1]), (
            "an answer that the model would not give now"
        )
        fresh = wanted[-1]
        assert isinstance(fresh, Finished)
        same = {"cache": {}, "usage": Usage(), "saved": Usage(), "paraphrase_of": None}
        assert replace(_listed(told.answer), **same) == replace(_listed(fresh.answer), **same)
        self._count("answer", told.answer.cache["answer"])

    def _insert(self, tenant: int, text: str, groups: frozenset[str]) -> None:
        shelf = self.world.shelves[tenant]
        shelf.documents.append(Document(shelf.next_id, text, groups))
        shelf.next_id += 1
        shelf.generation += 1

    def _change(self, tenant: int, which: int, **changes: Any) -> None:
        """A new version: its passage has a number of its own, as in the product."""
        shelf = self.world.shelves[tenant]
        if which < len(shelf.documents):
            before = shelf.documents[which]
            shelf.documents[which] = replace(before, chunk_id=shelf.next_id, **changes)
            shelf.next_id += 1
            shelf.generation += 1

    def _count(self, layer: str, outcome: str) -> None:
        name = f"{layer} {outcome}"
        self.outcomes[name] = self.outcomes.get(name, 0) + 1


def _in_whole_pieces(events: Sequence[AnswerEvent]) -> list[AnswerEvent]:
    """With pieces of text that follow each other as one."""
    joined: list[AnswerEvent] = []
    for event in events:
        before = joined[-1] if joined else None
        if isinstance(event, TextDelta) and isinstance(before, TextDelta):
            joined[-1] = TextDelta(before.text + event.text)
        else:
            joined.append(event)
    return joined


def _listed(answer: Answer) -> Answer:
    return replace(answer, citations=list(answer.citations), sentences=list(answer.sentences))


LOOP = asyncio.new_event_loop()
