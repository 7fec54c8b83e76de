"""A judged set of code from the packages that are installed: which function does what is said here?

    python -m evaluation.code_questions DIR [--documents 4000] [--questions 1000] [--seed 7]

writes a folder in the form of BEIR. The documents are Python functions without their docstrings,
the questions first sentences of docstrings, each answered by the function that it was taken from.
Other versions of the packages make another set.
"""

import argparse
import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random

FUNCTIONS_PER_PACKAGE = 260
WORDS = range(4, 21)
MAX_CODE_CHARS = 3000


def functions(source: str) -> Iterator[tuple[str, str]]:
    """The first sentence of each documented function, and its code without the docstring."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 3:
            continue
        described = (ast.get_docstring(node) or "").split("\n\n")[0]
        sentence = " ".join(described.split()).split(". ")[0]
        is_plain = sentence.isascii() and not set("`:") & set(sentence)
        if not is_plain or len(sentence.split()) not in WORDS:
            continue
        docstring = node.body[0]
        code = lines[node.lineno - 1 : docstring.lineno - 1]
        code += lines[docstring.end_lineno : node.end_lineno]
        if len("\n".join(code)) <= MAX_CODE_CHARS:
            yield sentence, "\n".join(code)


def collect(packages: Path, random: Random) -> list[tuple[str, str]]:
    """Functions of all packages, none described or written as another one is."""
    found: list[tuple[str, str]] = []
    seen: set[str] = set()
    for package in sorted(one for one in packages.iterdir() if one.is_dir()):
        files = sorted(path for path in package.rglob("*.py") if "tests" not in path.parts)
        random.shuffle(files)
        taken = 0
        for path in files:
            try:
                pairs = list(functions(path.read_text("utf-8")))
            except (SyntaxError, UnicodeDecodeError, ValueError):
                continue
            for sentence, code in pairs:
                if taken < FUNCTIONS_PER_PACKAGE and not {sentence.lower(), code} & seen:
                    seen |= {sentence.lower(), code}
                    found.append((sentence, code))
                    taken += 1
            if taken >= FUNCTIONS_PER_PACKAGE:
                break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    random = Random(arguments.seed)
    found = collect(Path(sysconfig.get_paths()["purelib"]), random)
    random.shuffle(found)
    documents = found[: arguments.documents]
    asked = sorted(random.sample(range(len(documents)), min(arguments.questions, len(documents))))
    qrels: Path = arguments.folder / "qrels"
    qrels.mkdir(parents=True, exist_ok=True)
    _write(
        arguments.folder / "corpus.jsonl",
        [{"_id": str(n), "title": "", "text": code} for n, (_, code) in enumerate(documents)],
    )
    _write(
        arguments.folder / "queries.jsonl",
        [{"_id": f"q{n}", "text": documents[n][0]} for n in asked],
    )
    judged = ["query-id\tcorpus-id\tscore", *(f"q{n}\t{n}\t1" for n in asked)]
    (qrels / "test.tsv").write_text("\n".join(judged) + "\n", "utf-8")
    print(f"{len(documents)} functions, {len(asked)} questions")


def _write(path: Path, lines: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


if __name__ == "__main__":
    main()
