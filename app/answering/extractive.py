"""An answer without a model: the best sentences of the passages, in their own words. Pure.

Whoever calls embeds the candidates (one call) and gives their similarity to the question.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from app.answering.sentences import Kind, Sentence, readable, split_sentences
from app.answering.words import content_terms
from app.search.base import Hit

MAX_PASSAGES = 5
MAX_CANDIDATES = 60
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
KEPT_SHARE = 0.75
"""Further sentences must score this share of the best one's score."""
SAME_SHARE = 0.7
"""Two sentences that share this much of their words say the same."""

_ENDS = re.compile(r"[.!?…。！？:;][\"”’')\]*_`»」』]*(?:\s*\[[^\]]*\])*$")
_LEANS_BACK = re.compile(
    r"(?:it|its|this|that|these|those|they|their|he|she|his|her|such|both|however|also|then|"
    r"therefore|thus|instead|otherwise|additionally|furthermore|moreover)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence that could be the answer.

    `hits[place].text[start:end]` is what it quotes; `text` is how it reads, `block` what follows
    on lines of its own (code, a list). `embedded_text` puts it under its title, because short
    sentences say little by themselves.
    """

    place: int
    start: int
    end: int
    text: str
    block: str
    embedded_text: str
    terms: frozenset[str]

    @property
    def reading(self) -> str:
        return "\n".join(part for part in (self.text, self.block) if part)


def find_candidates(hits: Sequence[Hit]) -> list[Candidate]:
    """At most MAX_CANDIDATES from the first passages, in the order of the passages."""
    found: list[Candidate] = []
    for place, hit in enumerate(hits[:MAX_PASSAGES]):
        found += _candidates_of(place, hit, whole_only=True)
    if not found:
        for place, hit in enumerate(hits[:MAX_PASSAGES]):
            found += _candidates_of(place, hit, whole_only=False)
    return found[:MAX_CANDIDATES]


def choose(
    question_terms: Sequence[str], candidates: Sequence[Candidate], similarities: Sequence[float]
) -> list[Candidate]:
    """The best one to three, each saying something of its own, in the order to read them.

    `similarities` are cosines of the question and each candidate's `embedded_text`.
    """
    weights = _rarity(question_terms, candidates)
    total = sum(weights.values()) or 1.0
    scores = [
        similarity
        + OVERLAP_WEIGHT * sum(weights[term] for term in weights if term in candidate.terms) / total
        - RANK_PENALTY * candidate.place
        for candidate, similarity in zip(candidates, similarities, strict=True)
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
    chosen.sort(key=lambda each: (places.index(candidates[each].place), candidates[each].start))
    return [candidates[each] for each in chosen]


def written(candidate: Candidate, marker: int, *, after: str) -> str:
    """The candidate with its marker, and what sets it off from the answer `after` which it comes.

    The marker stands before a block, where it cannot be taken for a part of the code.
    """
    if not after:
        space = ""
    elif candidate.block or after.endswith("\n") or "\n" in after.rsplit("\n\n", 1)[-1]:
        space = "\n\n"
    else:
        space = " "
    text = f"{candidate.text} [{marker}]".lstrip()
    return f"{space}{text}" + (f"\n\n{candidate.block}" if candidate.block else "")


def _rarity(question_terms: Sequence[str], candidates: Sequence[Candidate]) -> dict[str, float]:
    """Weight of each term of the question: a word that every candidate has tells them not apart."""
    holding = Counter(term for candidate in candidates for term in candidate.terms)
    count = len(candidates)
    return {
        term: log(1 + (count - holding[term] + 0.5) / (holding[term] + 0.5))
        for term in dict.fromkeys(question_terms)
    }


def _say_the_same(one: Candidate, other: Candidate) -> bool:
    if one.place == other.place and one.start < other.end and other.start < one.end:
        return True
    fewer = min(len(one.terms), len(other.terms))
    return fewer > 0 and len(one.terms & other.terms) >= SAME_SHARE * fewer


def _candidates_of(place: int, hit: Hit, *, whole_only: bool) -> list[Candidate]:
    sentences = split_sentences(hit.text)
    heading = hit.heading[-1] if hit.heading else ""
    above = heading or hit.title
    table_header: list[str] = []
    found: list[Candidate] = []
    after = 0
    for number, sentence in enumerate(sentences):
        raw = hit.text[sentence.start : sentence.end]
        text = readable(raw, sentence.kind)
        if sentence.start < after:
            continue  # part of the list that the sentence before announced
        if sentence.kind == "heading" or text.endswith(("?", "？")):
            # Neither answers anything, but both say what the next sentences are about.
            above = text.lstrip("# ")
            continue
        start, end, block = sentence.start, sentence.end, ""
        if sentence.kind == "row":
            if _is_table_header(hit.text, sentences, number):
                table_header = _cells(raw)
                continue
            text = _row_text(table_header, _cells(raw))
        elif sentence.kind == "code":
            text, block = "", raw
        elif text.endswith(":"):
            end, block = _announced(hit.text, sentences, number)
            if not block:
                continue
            after = end
        elif whole_only and not _is_whole(text):
            continue
        elif _LEANS_BACK.match(text) and (before := _before(sentences, number)):
            start = before.start
            text = f"{readable(hit.text[start : before.end], before.kind)} {text}"
        if end - start > MAX_SENTENCE_CHARS:
            continue
        embedded = f"{above}: {text} {block}".strip()
        terms = frozenset(content_terms(f"{text} {block}"))
        found.append(Candidate(place, start, end, text, block, embedded, terms))
    return found


def _is_whole(text: str) -> bool:
    least = MIN_SENTENCE_CHARS if _ENDS.search(text) else MIN_FRAGMENT_CHARS
    return len(text) >= least


def _before(sentences: Sequence[Sentence], number: int) -> Sentence | None:
    """The sentence before in the same paragraph."""
    before = sentences[number - 1]
    return before if number and before.block == sentences[number].block else None


def _announced(text: str, sentences: Sequence[Sentence], number: int) -> tuple[int, str]:
    """Where that ends which a sentence with a colon announces, and how it reads.

    A block of code, or the items of a list, as far as they fit.
    """
    start, end = sentences[number].start, sentences[number].end
    lines: list[str] = []
    kinds: set[Kind] = set()
    for following in sentences[number + 1 :]:
        kinds.add(following.kind)
        if following.kind not in ("code", "item") or len(kinds) > 1:
            break
        if following.end - start > MAX_SENTENCE_CHARS:
            break
        raw = text[following.start : following.end]
        lines.append(raw if following.kind == "code" else f"- {readable(raw, 'item')}")
        end = following.end
        if following.kind == "code":
            break
    return end, "\n".join(lines)


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
