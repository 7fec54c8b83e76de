"""What the reranker learns from: questions, the passage that answers each, and its near misses.

Questions written by people come from folders in BEIR's form (the `dev` judgements only), files in
SQuAD's form and the questions of chunking_evaluation; more are made from passages: a heading asks
for its section, a sentence for the paragraph that it is taken out of, a docstring for its function.
"""

import csv
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORDS_PER_PASSAGE = 120
LEAST_WORDS = 25
MADE_PER_PASSAGE = 0.5
"""Share of the passages that a question is made from; the rest are only there to be mistaken for
the right one."""
MOST_MARKDOWN = 4_000
"""Passages of one folder of Markdown, so that no single library of documents outweighs the rest."""
HIDDEN = 0.8
"""How often what a question was made of is taken out of its passage: looking for the very words is
what the keyword leg does already."""

_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_DOCSTRING = re.compile(r'^\s*(?:"""|\'\'\')(.+?)(?:"""|\'\'\')', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Question:
    """`answers` are places in the pool's passages."""

    text: str
    answers: frozenset[int]
    is_made: bool = False


@dataclass(slots=True)
class Pool:
    passages: list[str] = field(default_factory=list[str])
    questions: list[Question] = field(default_factory=list[Question])

    def add(self, passage: str) -> int:
        self.passages.append(passage)
        return len(self.passages) - 1


def read_pool(sources: Sequence[Path], chance: random.Random) -> Pool:
    """All passages and questions of the folders and files, by their forms."""
    pool = Pool()
    for source in sources:
        if source.suffix == ".json":
            _read_squad(source, pool)
        elif (source / "corpus.jsonl").is_file():
            _read_beir(source, pool, chance)
        elif (source / "questions_df.csv").is_file():
            _read_spans(source, pool)
        else:
            _read_markdown(source, pool, chance)
    return pool


def _read_squad(path: Path, pool: Pool) -> None:
    """Unanswerable questions are about their paragraph as well, and about no other one."""
    for article in json.loads(path.read_text("utf-8"))["data"]:
        title = article["title"].replace("_", " ")
        for paragraph in article["paragraphs"]:
            place = pool.add(f"{title}\n{paragraph['context']}")
            for question in paragraph["qas"]:
                pool.questions.append(Question(question["question"], frozenset([place])))


def _read_beir(folder: Path, pool: Pool, chance: random.Random) -> None:
    places: dict[str, int] = {}
    for line in read_lines(folder / "corpus.jsonl"):
        text = f"{line['title']}\n{line['text']}" if line.get("title") else line["text"]
        summary = ""
        documented = _DOCSTRING.search(text)
        if documented and chance.random() < MADE_PER_PASSAGE:
            summary = " ".join(documented.group(1).split("\n\n")[0].split())
            text = _hidden(text, documented.group(), chance)
        places[str(line["_id"])] = place = pool.add(text)
        if 3 <= len(summary.split()) <= 30:
            pool.questions.append(Question(summary, frozenset([place]), is_made=True))
    queries = {str(line["_id"]): line["text"] for line in read_lines(folder / "queries.jsonl")}
    judged: dict[str, set[int]] = {}
    with (folder / "qrels" / "dev.tsv").open(encoding="utf-8", newline="") as file:
        for row in list(csv.reader(file, delimiter="\t"))[1:]:
            if int(row[2]) > 0:
                judged.setdefault(row[0], set()).add(places[row[1]])
    for query_id, answers in judged.items():
        pool.questions.append(Question(queries[query_id], frozenset(answers)))


def _read_spans(folder: Path, pool: Pool) -> None:
    ranges: dict[str, list[tuple[int, int, int]]] = {}
    for path in sorted((folder / "corpora").iterdir()):
        text = path.read_text("utf-8")
        ranges[path.stem] = [(start, end, pool.add(text[start:end])) for start, end in _cut(text)]
    with (folder / "questions_df.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            spans = json.loads(row["references"])
            answers = {
                place
                for start, end, place in ranges[row["corpus_id"]]
                for span in spans
                if start <= (span["start_index"] + span["end_index"]) // 2 < end
            }
            if answers:
                pool.questions.append(Question(row["question"], frozenset(answers)))


def _read_markdown(folder: Path, pool: Pool, chance: random.Random) -> None:
    paths = sorted(folder.rglob("*.md"))
    chance.shuffle(paths)
    first = len(pool.passages)
    for path in paths:
        if len(pool.passages) - first >= MOST_MARKDOWN:
            break
        text = path.read_text("utf-8", "replace")
        title = (_HEADING.search(text) or [None, path.stem.replace("-", " ")])[1]
        for heading, section in _sections(text):
            for index, (start, end) in enumerate(_cut(section)):
                passage = section[start:end].strip()
                if len(passage.split()) < LEAST_WORDS:
                    continue
                passage = f"{title} > {heading}\n{passage}"
                question = ""
                if chance.random() < MADE_PER_PASSAGE:
                    question, origin = _made_question(
                        heading if index == 0 else "", passage, chance
                    )
                    passage = _hidden(passage, origin, chance)
                place = pool.add(passage)
                if question:
                    pool.questions.append(Question(question, frozenset([place]), is_made=True))


def _made_question(heading: str, passage: str, chance: random.Random) -> tuple[str, str]:
    """A question about the passage and the words of it that it was made of; both may be empty."""
    if len(heading.split()) > 1 and chance.random() < 0.4:
        return heading, f" > {heading}"
    _, _, body = passage.partition("\n")
    sentences = [one for one in _SENTENCE_END.split(body) if 6 <= len(one.split()) <= 30]
    if not sentences:
        return "", ""
    sentence = chance.choice(sentences)
    # People do not ask in whole sentences.
    kept = [word for word in sentence.split() if chance.random() < 0.6]
    return " ".join(kept), sentence


def _hidden(passage: str, origin: str, chance: random.Random) -> str:
    return passage.replace(origin, "", 1) if chance.random() < HIDDEN else passage


def _sections(text: str) -> Iterator[tuple[str, str]]:
    heads = list(_HEADING.finditer(text))
    bounds = [*(head.start() for head in heads[1:]), len(text)]
    for head, end in zip(heads, bounds, strict=False):
        yield head.group(1), text[head.end() : end]


def _cut(text: str) -> Iterator[tuple[int, int]]:
    """Runs of whole lines of about WORDS_PER_PASSAGE words; a longer line is cut at its words."""
    start = words_count = 0
    for word in re.finditer(r"\S+\s*", text):
        words_count += 1
        ends_line = "\n" in word.group()
        if words_count >= WORDS_PER_PASSAGE * (1 if ends_line else 1.5):
            yield start, word.end()
            start, words_count = word.end(), 0
    if start < len(text):
        yield start, len(text)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
