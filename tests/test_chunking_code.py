"""Programs: which definitions are told apart, and how passages keep them whole."""

import time
from pathlib import Path

import pytest

from app.config import Settings
from ingestion.chunking import split
from ingestion.parsing.code import SECTIONS_MAX, SOURCE_BYTES_MAX, read_outline
from ingestion.parsing.documents import parse_document
from ingestion.parsing.sandbox import ParserPool
from ingestion.types import Chunk, Chunking, CodeLanguage
from tests.doubles.words import WordTokenizer


def outline(text: str, language: CodeLanguage) -> list[tuple[int, str, str]]:
    """Level, name and first line of each section."""
    return [
        (one.level, one.name, text[one.start :].split("\n")[0].strip())
        for one in read_outline(text, language)
    ]


def chunks_of(text: str, filename: str, size: int = 100) -> list[Chunk]:
    return split(parse_document(text.encode(), filename), WordTokenizer(), Chunking(size))


def function(name: str, lines: int, indent: str = "") -> str:
    body = "".join(f"{indent}    total = total + {number}\n" for number in range(lines))
    return f"{indent}def {name}(total):\n{body}{indent}    return total\n"


PYTHON = '''"""What this is about: größer 😀."""

import os

LIMIT = 3


# What it is for.
@cached
def load(path):
    return path


class Queue(Base):
    """Holds things."""

    size = 0

    def push(self, thing):
        pass

    @property
    def first(self):
        pass


if LIMIT:
    print(os)
'''


def test_definitions_come_with_their_comments_and_decorators() -> None:
    assert outline(PYTHON, "python") == [
        (1, "", '"""What this is about: größer 😀."""'),
        (1, "load", "# What it is for."),
        (1, "Queue", "class Queue(Base):"),
        (2, "push", "def push(self, thing):"),
        (2, "first", "@property"),
        (1, "", "if LIMIT:"),
    ]


@pytest.mark.parametrize(
    ("language", "text", "names"),
    [
        ("javascript", ("import a from 'b';\n/** Doc */\nexport function f() {}\n"
         "export class Q {\n push() {}\n}\nconst g = () => 1;\n"), ["", "f", "Q", "push", "g"]),
        ("typescript", "interface I { a: string }\nexport abstract class Q {\n push(): void {}\n}\n",
         ["I", "Q", "push"]),
        ("tsx", "export const A = () => <div/>;\nfunction B() { return <A/>; }\n", ["A", "B"]),
        ("go", "package x\n// Doc\nfunc F() {}\nfunc (q *Queue[T]) Push() {}\ntype Queue struct {}\n",
         ["", "F", "Queue.Push", "Queue"]),
        ("rust", "use std;\n#[derive(Debug)]\nstruct Q {}\nimpl Q {\n /// Doc\n fn push() {}\n}\n",
         ["", "Q", "Q", "push"]),
        ("java", "package a;\npublic class Q {\n int x;\n public Q() {}\n void push() {}\n}\n",
         ["", "Q", "Q", "push"]),
        ("c", ("#ifndef X\n#define X\n/* Doc */\nstatic int *f(int a) { return 0; }\n"
         "struct q { int a; };\n#endif\n"), ["", "f", "q"]),
        ("cpp", "namespace n {\nclass Q {\n void push() {}\n};\n}\nvoid n::Q::pop() {}\n",
         ["n", "Q", "push", "n::Q::pop"]),
        ("c_sharp", "using System;\nnamespace N {\n class Q {\n void Push() {}\n }\n}\n",
         ["", "N", "Q", "Push"]),
        ("ruby", "require 'x'\nmodule M\n class Q\n  def push\n  end\n end\nend\n",
         ["", "M", "Q", "push"]),
        ("php", "<?php\nfunction f() {}\nclass Q {\n function push() {}\n}\n", ["", "f", "Q", "push"]),
        ("bash", "#!/bin/bash\nset -e\n# Doc\nf() {\n echo\n}\nf\n", ["", "f", ""]),
    ],
)  # fmt: skip
def test_each_language_has_its_definitions(
    language: CodeLanguage, text: str, names: list[str]
) -> None:
    assert [name for _, name, _ in outline(text, language)] == names


@pytest.mark.parametrize("text", ["", "no program at all", "x = 1\ny = 2\n", "def (((((\n" * 50])
def test_what_holds_no_definitions_has_no_outline(text: str) -> None:
    assert read_outline(text, "python") == ()


def test_a_program_beyond_the_limits_has_no_outline() -> None:
    assert read_outline("def f(): pass\n" + "#" * SOURCE_BYTES_MAX, "python") == ()
    assert read_outline("def f(): pass\n" * (SECTIONS_MAX + 1), "python") == ()


@pytest.mark.parametrize(
    ("language", "text"),
    [("cpp", "a<" * 500_000), ("python", "[" * 300_000), ("javascript", "{" * 500_000)],
)
def test_a_hostile_program_takes_seconds(language: CodeLanguage, text: str) -> None:
    started = time.process_time()
    assert read_outline(text, language) == ()
    assert time.process_time() - started < 8


async def test_the_outline_comes_whole_out_of_the_parsers_process(tmp_path: Path) -> None:
    pool = ParserPool(Settings(home=tmp_path), 1)
    try:
        parsed = await pool.parse(PYTHON.encode(), "queue.py")
    finally:
        await pool.close()
    assert parsed.outline == read_outline(PYTHON, "python")
    assert len(parsed.outline) == 6


def test_a_function_that_fits_is_kept_whole_and_named() -> None:
    functions = [function(f"step{number}", 12) for number in range(6)]
    chunks = chunks_of("\n\n".join(functions), "steps.py")
    assert [chunk.text for chunk in chunks] == [one.strip() for one in functions]
    assert [chunk.heading for chunk in chunks] == [(f"step{number}",) for number in range(6)]


def test_small_neighbours_are_taken_together() -> None:
    text = "\n\n".join(function(f"step{number}", 1) for number in range(12))
    chunks = chunks_of(text, "steps.py")
    assert 1 < len(chunks) < 8
    assert all(chunk.text.startswith("def ") for chunk in chunks)


def test_a_large_class_is_cut_at_its_methods() -> None:
    methods = "\n".join(function(f"step{number}", 11, "    ") for number in range(5))
    text = f'import os\n\n\nclass Queue:\n    """Holds things."""\n\n{methods}'
    chunks = chunks_of(text, "queue.py")
    assert "import os\n\n\nclass Queue:" in chunks[0].text
    assert [chunk.heading for chunk in chunks[-4:]] == [
        ("Queue", f"step{number}") for number in range(1, 5)
    ]
    assert [chunk.text.count("def ") for chunk in chunks[-4:]] == [1] * 4


def test_a_class_that_fits_is_not_cut() -> None:
    text = "\n\n".join(
        [function("before", 12), (f"class Queue:\n{function('a', 2, '    ')}\n"
         f"{function('b', 2, '    ')}"), function("after", 12)]
    )  # fmt: skip
    (chunk,) = [chunk for chunk in chunks_of(text, "queue.py") if "class Queue" in chunk.text]
    assert chunk.heading == ("Queue",)
    assert "def a" in chunk.text
    assert "def b" in chunk.text


def test_a_function_too_long_for_a_passage_is_cut_at_its_lines() -> None:
    chunks = chunks_of(function("long", 100), "long.py")
    assert len(chunks) > 3
    assert {chunk.heading for chunk in chunks} == {("long",)}
    assert all(chunk.text.startswith(("def", "total", "return")) for chunk in chunks)


def test_an_unknown_language_is_cut_at_blank_lines() -> None:
    block = "\n".join(f"let x{number} = {number}" for number in range(12))
    chunks = chunks_of("\n\n".join([block] * 8), "steps.jl", size=60)
    assert len(chunks) == 8
    assert {chunk.text for chunk in chunks} == {block}


def test_our_own_code_is_cut_without_loss() -> None:
    for path in sorted(Path("ingestion/chunking").glob("*.py")):
        text = path.read_text("utf-8")
        chunks = chunks_of(text, path.name, size=200)
        end = 0
        for chunk in chunks:
            assert text[chunk.start : chunk.end] == chunk.text
            assert not text[end : chunk.start].strip()
            end = chunk.end
        assert not text[end:].strip()
