"""An answer without a model: the best sentences of the passages, in their own words. Pure.

Whoever calls embeds the candidates (one call) and gives their similarity to the question.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log

from app.answering.sentences import Sentence, readable, split_sentences
from app.answering.words import content_terms
from app.search.base import Hit

MAX_PASSAGES = 5
MAX_CANDIDATES = 60
MAX_EMBEDDED = 16
"""Of the candidates, those that share the most with the question. On SQuAD embedding more than
twelve of thirty changes nothing but the time it takes."""
MAX_SENTENCES = 3
MAX_SENTENCE_CHARS = 800
MIN_SENTENCE_CHARS = 20
MIN_FRAGMENT_CHARS = 40
"""What ends without a full stop is a fragment, such as a caption, unless it is this long."""

OVERLAP_WEIGHT = 0.5
"""Of the rare words that question and sentence share, beside their similarity. Measured, like the
penalty, by how often the best sentences hold the answers of SQuAD: anything from 0.4 to 0.6 does."""
RANK_PENALTY = 0.01
"""For each place that the passage stands below the first."""
SHORTLIST_RANK_PENALTY = 0.05
LEANING_PENALTY = 0.05
KEPT_SHARE = 0.75
"""Further sentences must score this share of the best one's score."""
SAME_SHARE = 0.7
"""Two sentences that share this much of their words say the same."""

_ENDS = re.compile(r"[.!?…。！？:;][\"”’')\]*_`»」』]*(?:\s*\[[^\]]*\])*$")
_LEANS_BACK = re.compile(
    r"(?:(?-i:It)|its|this|that|these|those|they|their|he|she|his|her|such|both|however|also|then|"
    r"and|but|or|so|therefore|thus|instead|otherwise|additionally|furthermore|moreover)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a passage says at `start:end`: `text`, and the `block` of code or items after it.

    One that `leans_back` points to a sentence that is not at hand.
    """

    start: int
    end: int
    text: str
    block: str = ""
    leans_back: bool = False

    @property
    def reading(self) -> str:
        return "\n".join(part for part in (self.text, self.block) if part)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A piece of `hits[place]` that could be the answer; it quotes `text[start:end]` of that hit.

    `embedded_text` puts it under its title, because short sentences say little by themselves.
    """

    place: int
    piece: Piece
    embedded_text: str
    terms: frozenset[str]


def find_candidates(hits: Sequence[Hit]) -> list[Candidate]:
    """At most MAX_CANDIDATES from the first passages, in the order of the passages."""
    found: list[Candidate] = []
    for place, hit in enumerate(hits[:MAX_PASSAGES]):
        found += _candidates_of(place, hit, whole_only=True)
    if not found:
        for place, hit in enumerate(hits[:MAX_PASSAGES]):
            found += _candidates_of(place, hit, whole_only=False)
    return found[:MAX_CANDIDATES]


def shortlist(question_terms: Sequence[str], candidates: Sequence[Candidate]) -> list[Candidate]:
    """The MAX_EMBEDDED candidates with the best chances by words and rank, in their order."""
    shares = _shared(question_terms, candidates)

    def merit(each: int) -> float:
        return shares[each] - SHORTLIST_RANK_PENALTY * candidates[each].place

    best_first = sorted(range(len(candidates)), key=merit, reverse=True)
    return [candidates[each] for each in sorted(best_first[:MAX_EMBEDDED])]


def choose(
    question_terms: Sequence[str], candidates: Sequence[Candidate], similarities: Sequence[float]
) -> list[Candidate]:
    """The best one to three, each saying something of its own, in the order to read them.

    `similarities` are cosines of the question and each candidate's `embedded_text`.
    """
    shares = _shared(question_terms, candidates)
    scores = [
        similarity
        + OVERLAP_WEIGHT * share
        - RANK_PENALTY * candidate.place
        - LEANING_PENALTY * candidate.piece.leans_back
        for candidate, similarity, share in zip(candidates, similarities, shares, strict=True)
    ]
    best_first = sorted(range(len(candidates)), key=lambda each: -scores[each])
    chosen: list[int] = []
    for each in best_first:
        if len(chosen) == MAX_SENTENCES or scores[each] < KEPT_SHARE * scores[best_first[0]]:
            break
        if not any(_say_the_same(candidates[each], candidates[other]) for other in chosen):
            chosen.append(each)
    # Passages in the order of their best sentence, and the sentences of one as it has them.
    places = list(dict.fromkeys(candidates[each].place for each in chosen))
    chosen.sort(
        key=lambda each: (places.index(candidates[each].place), candidates[each].piece.start)
    )
    return [candidates[each] for each in chosen]


def written(piece: Piece, marker: int, *, after: str) -> str:
    """The piece with its marker, and what sets it off from `after`, the answer up to it.

    The marker stands before a block, where it cannot be taken for a part of the code.
    """
    text = f"{piece.text} [{marker}]".lstrip()
    if not piece.block:
        ends_in_block = "\n" in after
        return f"\n\n{text}" if ends_in_block else f" {text}" if after else text
    return ("\n\n" if after else "") + f"{text}\n\n{piece.block}"


def _shared(question_terms: Sequence[str], candidates: Sequence[Candidate]) -> list[float]:
    """For each candidate the share (0…1) of the question's words that it has.

    Rare words weigh more: one that every candidate has does not tell them apart.
    """
    holding = Counter(term for candidate in candidates for term in candidate.terms)
    count = len(candidates)
    weights = {
        term: log(1 + (count - holding[term] + 0.5) / (holding[term] + 0.5))
        for term in dict.fromkeys(question_terms)
    }
    total = sum(weights.values()) or 1.0
    return [
        sum(weight for term, weight in weights.items() if term in candidate.terms) / total
        for candidate in candidates
    ]


def _say_the_same(one: Candidate, other: Candidate) -> bool:
    if (
        one.place == other.place
        and one.piece.start < other.piece.end
        and other.piece.start < one.piece.end
    ):
        return True
    fewer = min(len(one.terms), len(other.terms))
    return fewer > 0 and len(one.terms & other.terms) >= SAME_SHARE * fewer


def _candidates_of(place: int, hit: Hit, *, whole_only: bool) -> list[Candidate]:
    above = hit.heading[-1] if hit.heading else hit.title
    found: list[Candidate] = []
    for piece in _pieces(hit.text, whole_only=whole_only):
        if isinstance(piece, str):
            above = piece
        elif piece.end - piece.start <= MAX_SENTENCE_CHARS:
            embedded = f"{above}: {piece.reading}"
            terms = frozenset(content_terms(piece.reading))
            found.append(Candidate(place, piece, embedded, terms))
    return found


def _pieces(text: str, *, whole_only: bool) -> Iterator[Piece | str]:
    """The pieces of a passage, and the headings and questions among them.

    Neither a heading nor a question answers anything, but both say what comes after them.
    """
    sentences = split_sentences(text)
    table_header: list[str] = []
    end = 0
    for number, sentence in enumerate(sentences):
        if sentence.start < end:
            continue  # part of the list that the sentence before announced
        raw = text[sentence.start : sentence.end]
        reading = readable(raw, sentence.kind)
        if sentence.kind == "heading" or reading.endswith(("?", "？")):
            yield reading.lstrip("# ")
        elif sentence.kind == "row" and _is_table_header(text, sentences, number):
            table_header = _cells(raw)
        elif sentence.kind == "row":
            yield Piece(sentence.start, sentence.end, _row_text(table_header, _cells(raw)))
        elif sentence.kind == "code":
            piece = _with_introduction(text, sentences, number)
            if piece.text or not whole_only:
                yield piece
        elif reading.endswith(":"):
            piece = _with_announced(text, sentences, number, reading)
            end = piece.end
            if piece.block:
                yield piece
        elif _is_whole(reading) or not whole_only:
            yield _with_antecedent(text, sentences, number, reading)


def _is_whole(reading: str) -> bool:
    least = MIN_SENTENCE_CHARS if _ENDS.search(reading) else MIN_FRAGMENT_CHARS
    return len(reading) >= least


def _with_antecedent(text: str, sentences: Sequence[Sentence], number: int, reading: str) -> Piece:
    """The sentence, after the one before it in its paragraph when it points back to that."""
    sentence = sentences[number]
    if not _LEANS_BACK.match(reading):
        return Piece(sentence.start, sentence.end, reading)
    before = sentences[number - 1] if number else sentence
    is_at_hand = before is not sentence and before.block == sentence.block
    if not is_at_hand or sentence.end - before.start > MAX_SENTENCE_CHARS:
        return Piece(sentence.start, sentence.end, reading, leans_back=True)
    both = f"{readable(text[before.start : before.end], before.kind)} {reading}"
    return Piece(before.start, sentence.end, both)


def _with_introduction(text: str, sentences: Sequence[Sentence], number: int) -> Piece:
    """A block of code, after the sentence that says what it does."""
    code = sentences[number]
    block = text[code.start : code.end]
    for before in reversed(sentences[:number]):
        if before.kind not in ("prose", "item"):
            break
        if reading := readable(text[before.start : before.end], before.kind):
            return Piece(before.start, code.end, reading, block)
    return Piece(code.start, code.end, "", block)


def _with_announced(text: str, sentences: Sequence[Sentence], number: int, reading: str) -> Piece:
    """A sentence with a colon, and what it announces: code, or a list as far as it fits."""
    start, end = sentences[number].start, sentences[number].end
    lines: list[str] = []
    block = -1
    for following in sentences[number + 1 :]:
        if following.end - start > MAX_SENTENCE_CHARS:
            break
        raw = text[following.start : following.end]
        if following.kind == "code" and not lines:
            return Piece(start, following.end, reading, raw)
        if following.kind != "item":
            break
        if following.block == block:
            lines[-1] += f" {readable(raw)}"
        else:
            lines.append(f"- {readable(raw, 'item')}")
        block, end = following.block, following.end
    return Piece(start, end, reading, "\n".join(lines))


def _cells(raw: str) -> list[str]:
    return [readable(cell) for cell in raw.strip().strip("|").split("|")]


def _row_text(header: Sequence[str], cells: Sequence[str]) -> str:
    if len(header) != len(cells):
        return " · ".join(cell for cell in cells if cell)
    named = zip(header, cells, strict=True)
    return "; ".join(f"{name}: {cell}" if name else cell for name, cell in named if cell)


def _is_table_header(text: str, sentences: Sequence[Sentence], number: int) -> bool:
    """Whether the line between this row and the next is a table's rule."""
    if number + 1 == len(sentences) or sentences[number + 1].kind != "row":
        return False
    return "--" in text[sentences[number].end : sentences[number + 1].start]
