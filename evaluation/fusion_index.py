"""A judged set as the two legs see it, in this process: passages, postings, vectors, tokens.

Everything is made by the product's own parts, so that what is measured here is what a service
would find. What the model computes is kept in a folder, because it takes most of the time.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.db.postings import ChunkTerms, PostingList
from app.embedding.base import TextKind, TokenEmbedder, Vectors
from app.embedding.token_signs import TokenReader, pack_signs, word_spans
from app.errors import DocumentRejected
from app.search.keyword import inverse_document_frequency
from app.search.matching import by_name, query_terms, readings
from app.search.query import read_query
from app.terms import extract_terms
from evaluation.datasets import Dataset, Document
from evaluation.fusion_typos import Mender
from ingestion.chunking import split
from ingestion.parsing.documents import parse_document
from ingestion.types import Chunking, embedded_text, heading_path

EMBEDDED_AT_ONCE = 256
PACKED_AT_ONCE = 50_000

Tell = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Passage:
    """`number` counts the documents of the set; `embedded` is what both legs see."""

    number: int
    embedded: str
    terms: tuple[str, ...]
    title_terms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token vectors of many texts, one text after the other; text i's start at `starts[i]`.

    Only tokens of words that are index terms: neither stop words nor punctuation. `vectors` are
    float16, shape (tokens, width), `signs` packed as the product stores them; `terms[j]` are the
    index terms of the word of token j, joined by a blank.
    """

    starts: NDArray[np.int64]
    vectors: NDArray[np.float16]
    signs: NDArray[np.uint8]
    terms: list[str]

    def of(self, text: int) -> NDArray[np.float32]:
        return self.vectors[self.starts[text] : self.starts[text + 1]].astype(np.float32)

    def signs_of(self, text: int) -> NDArray[np.uint8]:
        return self.signs[self.starts[text] : self.starts[text + 1]]

    def terms_of(self, text: int) -> list[str]:
        return self.terms[self.starts[text] : self.starts[text + 1]]


@dataclass(frozen=True)
class Index:
    """A set, ready to be searched in memory. Row i of `vectors` and `tokens` is passage i."""

    dataset: Dataset
    languages: list[str]
    passages: list[Passage]
    postings: dict[str, PostingList]
    terms_count: int
    vectors: Vectors
    tokens: Tokens
    query_vectors: Vectors
    query_tokens: Tokens

    @cached_property
    def query_ids(self) -> list[str]:
        return list(self.dataset.queries)

    @cached_property
    def mender(self) -> Mender:
        return Mender({term: len(found) for term, found in self.postings.items()})

    def query_terms(self, query: int) -> Counter[str]:
        text = self.dataset.queries[self.query_ids[query]]
        return query_terms(read_query(text).text, self.languages)

    def readings(self, query: int) -> Mapping[str, PostingList]:
        """The postings of the query's terms that languages read differently."""
        text = self.dataset.queries[self.query_ids[query]]
        return by_name(self.postings, readings(read_query(text).text, self.languages))

    def idf(self, term: str) -> float:
        return inverse_document_frequency(len(self.passages), len(self.postings.get(term, ())))


def build_index(
    dataset: Dataset, embedder: TokenEmbedder, chunking: Chunking, cache: Path, tell: Tell
) -> Index:
    """Cut, index and embed a set, or take from `cache` what was embedded before."""
    passages: list[Passage] = []
    languages: Counter[str] = Counter()
    for number, document in enumerate(dataset.documents):
        tell("cut", number, len(dataset.documents))
        if document.title.strip() or document.text.strip():
            cut, language = _cut(document, number, embedder, chunking)
            passages += cut
            languages[language] += 1
    tell("cut", len(dataset.documents), len(dataset.documents))
    texts = [one.embedded for one in passages]
    vectors, tokens = _embed(texts, "document", embedder, cache, tell, dataset.name)
    asked = list(dataset.queries.values())
    query_vectors, query_tokens = _embed(asked, "query", embedder, cache, tell, dataset.name)
    return Index(
        dataset,
        [language for language, _ in languages.most_common()],
        passages,
        _postings(passages),
        sum(len(one.terms) for one in passages),
        vectors,
        tokens,
        query_vectors,
        query_tokens,
    )


def _cut(
    document: Document, number: int, embedder: TokenEmbedder, chunking: Chunking
) -> tuple[list[Passage], str]:
    """As the service takes it from whoever uploads it, see `Service.upload`."""
    content, filename = document.text, f"{number + 1}.txt"
    if document.title:
        content = f"---\ntitle: {json.dumps(document.title)}\n---\n\n{document.text}"
        filename = f"{number + 1}.md"
    try:
        parsed = parse_document(content.encode("utf-8", "replace"), filename)
    except DocumentRejected:
        return [], "english"
    passages: list[Passage] = []
    for chunk in split(parsed, embedder.tokenizer, chunking):
        text = embedded_text(parsed.title, chunk)
        terms = tuple(extract_terms(text, parsed.language))
        above = tuple(extract_terms(heading_path(parsed.title, chunk), parsed.language))
        passages.append(Passage(number, text, terms, above))
    return passages, parsed.language


def _postings(passages: Sequence[Passage]) -> dict[str, PostingList]:
    packed: dict[str, list[int]] = {}
    for place, passage in enumerate(passages):
        for term, posting in ChunkTerms(place, passage.terms, passage.title_terms).packed():
            packed.setdefault(term, []).append(posting)
    return {term: PostingList(np.array(own, np.uint64)) for term, own in packed.items()}


def _embed(
    texts: Sequence[str],
    kind: TextKind,
    embedder: TokenEmbedder,
    cache: Path,
    tell: Tell,
    name: str,
) -> tuple[Vectors, Tokens]:
    key = hashlib.sha256("\0".join([embedder.digest, kind, *texts]).encode("utf-8", "replace"))
    folder = cache / f"{name}-{kind}-{key.hexdigest()[:16]}"
    if not (folder / "terms.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(texts, kind, embedder, folder, tell)
    vectors: NDArray[np.float16] = np.load(folder / "tokens.npy", mmap_mode="r")
    return np.load(folder / "vectors.npy"), Tokens(
        np.load(folder / "starts.npy"),
        vectors,
        _packed(vectors, TokenReader(embedder, bool).mean()),
        json.loads((folder / "terms.json").read_text("utf-8")),
    )


def _packed(vectors: NDArray[np.float16], mean: NDArray[np.float32]) -> NDArray[np.uint8]:
    packed = [
        pack_signs(vectors[first : first + PACKED_AT_ONCE].astype(np.float32), mean)
        for first in range(0, len(vectors), PACKED_AT_ONCE)
    ]
    return np.concatenate(packed)


def _write(
    texts: Sequence[str], kind: TextKind, embedder: TokenEmbedder, folder: Path, tell: Tell
) -> None:
    pooled: list[Vectors] = []
    kept: list[NDArray[np.float16]] = []
    terms: list[str] = []
    starts = [0]
    for first in range(0, len(texts), EMBEDDED_AT_ONCE):
        part = texts[first : first + EMBEDDED_AT_ONCE]
        vectors, tokens = embedder.embed_with_tokens(
            part, "query" if kind == "query" else "document"
        )
        pooled.append(vectors)
        for text, own in zip(part, tokens, strict=True):
            words = word_spans(text, own.spans)
            known = [" ".join(extract_terms(text[start:end])) for start, end in words]
            places = [place for place, found in enumerate(known) if found]
            kept.append(own.vectors[places].astype(np.float16))
            terms += [known[place] for place in places]
            starts.append(len(terms))
        tell(f"embed, {kind}", first + len(part), len(texts))
    np.save(folder / "vectors.npy", np.concatenate(pooled))
    np.save(folder / "tokens.npy", np.concatenate(kept))
    np.save(folder / "starts.npy", np.array(starts, np.int64))
    (folder / "terms.json").write_text(json.dumps(terms), "utf-8")
