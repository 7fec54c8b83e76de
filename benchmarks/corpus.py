"""A corpus of any size, recombined from documents that there are; loaded as the product stores it.

How it is made. The sources are the paragraphs of Markdown and text files and of BEIR's
`corpus.jsonl` in the given folders. They are cut at sentence ends into fragments of some 50 words,
at most `--fragments` of them (whole documents, spread evenly over the folders), in the order of
their paths. Each fragment and each title is embedded once by the service's own model; texts and
vectors are kept in the given cache.

A made document has a fragment for its anchor, eight to twelve passages, and the title of the source
that the anchor is from. A passage joins two or three different fragments that stand at most
`NEAR` places from the anchor, so that it has a subject, and more than a million differ. Its terms
are what the product's `extract_terms` gives for its text. Its vector is the unit vector of the mean
of the vectors of its title and fragments, each weighted by its tokens. Everything follows from the
seed, the folders and the numbers.

What the vector is not. The model reads a passage as a whole, and pools what its tokens became beside
each other; here the fragments were read apart. With the bundled model (which pools by the mean) the
cosine of both is 0.88 in the mean over 500 passages, and 0.76 at the 5th percentile (`--check`). A
real million of passages would have more subjects, and more rare words: here every word of the sources
becomes more frequent with the size, and none is new.

Documents have metadata for filters of known selectivity: `half`, `tenth`, `hundredth` and
`thousandth` are true for that share of them, drawn at random; `folder` is that of the source, so a
filter on it leaves passages that are like each other. Half of the documents may be seen by everybody,
the others by one of ten groups (`team-0` … `team-9`) each. A second collection, `NAME-small`, has a
hundredth of the passages and shares the index of the first.

Two things differ from ingested documents: the originals are the texts themselves, and there is no
signature for finding near-duplicates.

    FOOTNOTE_HOME=/tmp/corpus python benchmarks/corpus.py FOLDER… --passages 100000 --cache /tmp/cache
    python benchmarks/corpus.py FOLDER… --cache /tmp/cache --check
"""

import argparse
import asyncio
import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.config import load_settings
from app.embedding.base import Embedder
from app.embedding.loading import open_embedder
from app.terms import extract_terms

FRAGMENTS = 20_000
FRAGMENT_WORDS = 50
LEAST_WORDS = 6
NEAR = 20
"""Fragments to either side of the anchor that a document draws from."""
SHARES = {"half": 0.5, "tenth": 0.1, "hundredth": 0.01, "thousandth": 0.001}
GROUPS_COUNT = 10
LANGUAGE = "english"
EMBEDDED_AT_ONCE = 512

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)

Vectors = NDArray[np.float32]
Integers = NDArray[np.int64]


# --- what it is made from -------------------------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """Fragments in the order of their documents; row by row of the vectors.

    `sources` are places in `titles` and `folders`, one for each fragment; `tokens` are counted by
    the model's tokenizer. `terms` are those of each fragment, `title_terms` those of each title.
    """

    fragments: list[str]
    sources: list[int]
    titles: list[str]
    folders: list[str]
    tokens: Integers
    title_tokens: Integers
    vectors: Vectors
    title_vectors: Vectors
    terms: list[list[str]]
    title_terms: list[list[str]]


def read_sources(
    folders: Sequence[Path], embedder: Embedder, cache: Path, limit: int = FRAGMENTS
) -> Sources:
    """The fragments of the folders' documents, embedded; `cache` spares that the next time."""
    documents = _spread([found for folder in folders for found in _documents(folder)], limit)
    if not documents:
        raise SystemExit("There is no text in these folders.")
    titles = [title for title, _, _ in documents]
    fragments = [one for _, _, parts in documents for one in parts]
    texts = [*titles, *fragments]
    tokens = np.array([len(spans) for spans in embedder.tokenizer.spans(texts)], np.int64)
    vectors = _embedded(texts, embedder, cache)
    return Sources(
        fragments=fragments,
        sources=[place for place, one in enumerate(documents) for _ in one[2]],
        titles=titles,
        folders=[folder for _, folder, _ in documents],
        tokens=tokens[len(titles) :],
        title_tokens=tokens[: len(titles)],
        vectors=vectors[len(titles) :],
        title_vectors=vectors[: len(titles)],
        terms=[extract_terms(one, LANGUAGE) for one in fragments],
        title_terms=[extract_terms(one, LANGUAGE) for one in titles],
    )


def _documents(folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Title, folder and fragments of each document that has a text."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".md", ".txt", ".rst"):
            text = path.read_text("utf-8", "replace").replace("\0", "")
            heading = _HEADING.search(text)
            title = heading[1] if heading else path.stem.replace("_", " ")
            parts = _fragments(_HEADING.sub("", text))
            named = path.relative_to(folder).parts
            if parts:
                yield title, named[0] if len(named) > 1 else folder.name, parts
        elif path.name == "corpus.jsonl":
            for line in path.read_text("utf-8").splitlines():
                read: dict[str, Any] = json.loads(line)
                if parts := _fragments(read.get("text") or ""):
                    yield read.get("title") or parts[0][:60], folder.name, parts


def _fragments(text: str) -> list[str]:
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        words: list[str] = []
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            words += sentence.split()
            while len(words) >= FRAGMENT_WORDS:
                found.append(" ".join(words[: 2 * FRAGMENT_WORDS]))
                words = words[2 * FRAGMENT_WORDS :]
        if len(words) >= LEAST_WORDS:
            found.append(" ".join(words))
    # A text of capitals alone is read otherwise when it stands in another one.
    return [one for one in found if not one.isupper()]


def _spread(
    documents: list[tuple[str, str, list[str]]], limit: int
) -> list[tuple[str, str, list[str]]]:
    """Every nth document, so that there are about `limit` fragments."""
    count = sum(len(parts) for _, _, parts in documents)
    kept = min(1.0, limit / max(1, count))
    return [
        one for place, one in enumerate(documents) if int((place + 1) * kept) > int(place * kept)
    ]


def _embedded(texts: Sequence[str], embedder: Embedder, cache: Path) -> Vectors:
    name = hashlib.sha256("\0".join([embedder.digest, *texts]).encode()).hexdigest()[:16]
    file = cache / f"fragments-{name}.npy"
    if file.exists():
        return np.load(file)
    cache.mkdir(parents=True, exist_ok=True)
    vectors = np.concatenate(
        [
            embedder.embed(texts[start : start + EMBEDDED_AT_ONCE], "document")
            for start in range(0, len(texts), EMBEDDED_AT_ONCE)
        ]
    )
    np.save(file, vectors)
    return vectors


# --- what is made ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class MadeDocument:
    """`vectors` and `tokens` stand beside `passages`; `terms` are in the order of the text."""

    number: int
    title: str
    title_terms: list[str]
    passages: list[str]
    terms: list[list[str]]
    tokens: list[int]
    vectors: Vectors
    metadata: dict[str, Any]
    groups: list[str]

    @property
    def text(self) -> str:
        return SEPARATOR.join(self.passages)


SEPARATOR = "\n\n"


class Corpus:
    """`count` passages, the same for the same sources and seed."""

    def __init__(self, sources: Sources, count: int, seed: int = 0) -> None:
        self.sources = sources
        self.count = count
        self._seed = seed

    def __iter__(self) -> Iterator[MadeDocument]:
        made = number = 0
        while made < self.count:
            document = self._make(number, self.count - made)
            made += len(document.passages)
            number += 1
            yield document

    def _make(self, number: int, most: int) -> MadeDocument:
        sources = self.sources
        random = np.random.default_rng([self._seed, number])
        anchor = int(random.integers(len(sources.fragments)))
        source = sources.sources[anchor]
        first = max(0, min(anchor - NEAR, len(sources.fragments) - 2 * NEAR - 1))
        near = np.arange(first, min(first + 2 * NEAR + 1, len(sources.fragments)))
        chosen = [
            random.choice(near, size=min(int(random.integers(2, 4)), len(near)), replace=False)
            for _ in range(min(int(random.integers(8, 13)), most))
        ]
        shares = random.random(len(SHARES))
        team = int(random.integers(2 * GROUPS_COUNT))
        return MadeDocument(
            number=number,
            title=sources.titles[source],
            title_terms=sources.title_terms[source],
            passages=[" ".join(sources.fragments[i] for i in parts) for parts in chosen],
            terms=[
                sources.title_terms[source] + [term for i in parts for term in sources.terms[i]]
                for parts in chosen
            ],
            tokens=[int(sources.tokens[parts].sum()) for parts in chosen],
            vectors=self._vectors(source, chosen),
            metadata={
                "number": number,
                "folder": sources.folders[source],
                **{
                    name: bool(drawn < SHARES[name])
                    for name, drawn in zip(SHARES, shares, strict=True)
                },
            },
            groups=[f"team-{team}"] if team < GROUPS_COUNT else [],
        )

    def _vectors(self, source: int, chosen: Sequence[Integers]) -> Vectors:
        sources = self.sources
        title = sources.title_vectors[source] * sources.title_tokens[source]
        sums = np.stack(
            [title + sources.tokens[parts] @ sources.vectors[parts] for parts in chosen]
        )
        return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)


def embedded_text(document: MadeDocument, place: int) -> str:
    """What the product gives the model for this passage."""
    return f"{document.title}\n{document.passages[place]}"


def check(corpus: Corpus, embedder: Embedder) -> dict[str, float]:
    """How near the made vectors are to the model's own, and whether the terms are the product's."""
    texts: list[str] = []
    made: list[Vectors] = []
    for document in corpus:
        for place, terms in enumerate(document.terms):
            texts.append(embedded_text(document, place))
            assert terms == extract_terms(texts[-1], LANGUAGE), texts[-1]
        made.append(document.vectors)
    cosines = (np.concatenate(made) * embedder.embed(texts, "document")).sum(axis=1)
    return {
        "passages": len(texts),
        "cosine_mean": round(float(cosines.mean()), 4),
        "cosine_p5": round(float(np.quantile(cosines, 0.05)), 4),
        "words_mean": round(float(np.mean([len(text.split()) for text in texts])), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="documents to make it from")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--fragments", type=int, default=FRAGMENTS)
    parser.add_argument("--cache", type=Path, required=True, help="keeps the fragments' vectors")
    parser.add_argument("--collection", default="corpus")
    parser.add_argument("--check", action="store_true", help="only compare 500 vectors")
    arguments = parser.parse_args()
    settings = load_settings()
    embedder = open_embedder(settings)
    started = time.perf_counter()
    sources = read_sources(arguments.folders, embedder, arguments.cache, arguments.fragments)
    embedding_seconds = time.perf_counter() - started
    if arguments.check:
        print(json.dumps(check(Corpus(sources, 500), embedder), indent=2))
        return
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from benchmarks.corpus_loading import load_into_home  # noqa: PLC0415 - imports this module

    loaded = asyncio.run(
        load_into_home(
            settings, embedder, Corpus(sources, arguments.passages), arguments.collection
        )
    )
    print(json.dumps({"sources_s": round(embedding_seconds, 1), **loaded}, indent=2))


if __name__ == "__main__":
    main()
