"""What a query's phrases demand, and what its excluded words rule out, as passages.

The index knows which passages hold all words of a phrase; whether they stand side by side is read
in the passages themselves.
"""

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.db.postings import PostingList, read_postings
from app.db.snapshot import Snapshot
from app.search.keyword import KeywordScores, score
from app.search.query import ParsedQuery
from app.search.scope import AllowedChunks, Scope
from app.terms import MARKS, UNSPACED, extract_terms, find_words, fold

ChunkIds = NDArray[np.int64]

CHECKED_PASSAGES = 5_000
"""So many passages are read for a phrase, at most: those that score best by its words. Reading
takes about a tenth of a second then."""

_NO_CHUNKS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Demands:
    """Only passages of `among` are wanted, and none of `without`; None where all are.

    Both ascend. `notes` say of each phrase and word how many passages hold it. `is_waived` when
    no passage holds the phrases of a question, and all are wanted therefore.
    """

    among: ChunkIds | None = None
    without: ChunkIds | None = None
    notes: dict[str, Any] = field(default_factory=dict[str, Any])
    is_waived: bool = False

    def of(self, scores: KeywordScores) -> KeywordScores:
        """The scores of wanted passages."""
        if self.among is not None:
            scores = scores.where(np.isin(scores.chunk_ids, self.among))
        if self.without is not None:
            scores = scores.where(~np.isin(scores.chunk_ids, self.without))
        return scores

    def explain(self, query: ParsedQuery) -> dict[str, Any]:
        """How the query was understood."""
        understood: dict[str, Any] = {"text": query.text}
        if query.phrases:
            understood["phrases"] = {words: self.notes[words] for words in query.phrases}
        if self.is_waived:
            understood["waived"] = "no passage holds these phrases, so their words are searched"
        if query.excluded:
            understood["excluded"] = {words: self.notes[words] for words in query.excluded}
        if query.prefixes:
            understood["prefixes"] = list(query.prefixes)
        return understood


NOTHING_DEMANDED = Demands()


async def find_demands(
    snapshot: Snapshot,
    scope: Scope,
    query: ParsedQuery,
    allowed: AllowedChunks | None,
    languages: Sequence[str],
) -> Demands:
    """The passages that the query's phrases and excluded words leave of those in the scope."""
    if not (query.phrases or query.excluded):
        return NOTHING_DEMANDED
    needs = {words: _needs(words, languages) for words in (*query.phrases, *query.excluded)}
    terms = sorted({term for need in needs.values() for group in need for term in group})
    index = await read_postings(snapshot, scope.parameters["collection_ids"], terms)
    notes: dict[str, Any] = {}

    async def holders(words: str) -> ChunkIds:
        possible = _holding_all(needs[words], index)
        if allowed is not None:
            possible = possible[allowed.holds(possible)]
        checked = _most_telling(possible, needs[words], index, scope)
        found = await _holding(snapshot, scope, words, checked)
        notes[words] = {"passages": len(found)}
        if len(checked) < len(possible):
            notes[words] |= {"read": len(checked), "possible": len(possible)}
        return found

    among = without = None
    for phrase in query.phrases:
        found = await holders(phrase)
        among = found if among is None else np.intersect1d(among, found)
    is_waived = among is not None and len(among) == 0 and query.is_question
    for words in query.excluded:
        if len(find_words(words)) > 1:
            found = await holders(words)
        else:
            found = _holding_word(words, languages, index)
            notes[words] = {"passages": len(found)}
        without = found if without is None else np.union1d(without, found)
    return Demands(None if is_waived else among, without, notes, is_waived)


# --- by the index ---------------------------------------------------------------------------------


def _needs(words: str, languages: Sequence[str]) -> list[set[str]]:
    """Of each word the terms that it may have: a passage with the phrase has one of every set.

    Words that some passages could hold without having a term of them are left out.
    """
    if len(find_words(words)) == 1:
        return [{term for language in languages for term in extract_terms(words, language)}]
    needs: list[set[str]] = []
    for word in find_words(words):
        of_word = [extract_terms(word.casefold(), language) for language in languages]
        if all(len(terms) == 1 and len(word) > 1 for terms in of_word):
            needs.append({terms[0] for terms in of_word})
    return needs


def _holding_all(needs: Sequence[set[str]], index: dict[str, PostingList]) -> ChunkIds:
    """Chunks that hold a term of every set; none where nothing is known to look for."""
    if not needs:
        return _NO_CHUNKS
    groups = [_united(index[term].chunk_ids for term in need if term in index) for need in needs]
    return reduce(np.intersect1d, sorted(groups, key=len))


def _holding_word(word: str, languages: Sequence[str], index: dict[str, PostingList]) -> ChunkIds:
    """Chunks that hold all terms of a word as one of the languages reads it."""
    return _united(
        _holding_all([{term} for term in terms], index)
        for language in languages
        if (terms := extract_terms(word, language))
    )


def _united(parts: Iterable[ChunkIds]) -> ChunkIds:
    return reduce(np.union1d, parts, _NO_CHUNKS)


def _most_telling(
    chunk_ids: ChunkIds, needs: Sequence[set[str]], index: dict[str, PostingList], scope: Scope
) -> ChunkIds:
    if len(chunk_ids) <= CHECKED_PASSAGES:
        return chunk_ids
    scores = score(
        index,
        {term: 1 for need in needs for term in need},
        chunks_count=scope.chunks_count,
        terms_count=scope.terms_count,
    )
    return scores.where(np.isin(scores.chunk_ids, chunk_ids)).top(CHECKED_PASSAGES).chunk_ids


# --- in the passages ------------------------------------------------------------------------------


async def _holding(snapshot: Snapshot, scope: Scope, words: str, chunk_ids: ChunkIds) -> ChunkIds:
    """Which of the chunks hold the words side by side, ascending."""
    if len(chunk_ids) == 0:
        return _NO_CHUNKS
    rows = await snapshot.fetch(
        f"""
        SELECT c.id,
          concat_ws(E'\\n', array_to_string(d.title || c.heading, ' > '), c.context, c.text)
        FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
        WHERE c.id = ANY(%(chunk_ids)s) AND {scope.visible_documents}
        """,  # noqa: S608 - conditions of the scope
        {**scope.parameters, "chunk_ids": chunk_ids},
    )

    def compared() -> list[int]:
        pattern = phrase_pattern(words)
        return sorted(chunk_id for chunk_id, text in rows if pattern.search(fold(text)))

    return np.array(await asyncio.to_thread(compared), np.int64)


_SPACED = rf"(?:[^\W_{UNSPACED}]|[{MARKS}])"
_WORD = re.compile(rf"{_SPACED}+|[{UNSPACED}]")
_IS_UNSPACED = re.compile(rf"[{UNSPACED}]")


def phrase_pattern(phrase: str) -> re.Pattern[str]:
    """Finds the words of a phrase in a folded text: whole, in their order, side by side.

    Between them may stand whatever is neither letter nor digit. Where words are written without
    spaces, every character is one.
    """
    words = _WORD.findall(fold(phrase))
    pattern = ""
    for place, word in enumerate(words):
        may_touch = place == 0 or _IS_UNSPACED.match(words[place - 1]) or _IS_UNSPACED.match(word)
        if place:
            pattern += r"[\W_]*" if may_touch else r"[\W_]+"
        pattern += re.escape(word)
    before = "" if _IS_UNSPACED.match(words[0]) else rf"(?<!{_SPACED})"
    after = "" if _IS_UNSPACED.match(words[-1]) else rf"(?!{_SPACED})"
    return re.compile(before + pattern + after)
