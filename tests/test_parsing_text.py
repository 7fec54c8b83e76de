"""Texts that need no conversion: encodings, front matter, titles, languages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import DocumentRejected
from app.terms import extract_terms
from ingestion.parsing.documents import TITLE_CHARS_MAX, parse_document
from ingestion.types import Markup
from tests import samples

GERMAN = (
    "Die Bundesregierung hat am Montag beschlossen, dass die neuen Regeln ab dem kommenden Jahr"
    " für alle Behörden und Unternehmen im Land gelten sollen."
)


def refusal(content: bytes, filename: str) -> str:
    with pytest.raises(DocumentRejected) as caught:
        parse_document(content, filename)
    return caught.value.reason


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "iso-8859-15"],
)
def test_a_text_is_read_in_any_encoding(encoding: str) -> None:
    parsed = parse_document(GERMAN.encode(encoding), "regeln.txt")
    assert parsed.text == GERMAN
    assert parsed.language == "german"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Правительство решило в понедельник, что новые правила вступят в силу."),
        ("shift_jis", "これは日本語の文章です。新しい規則は来年から適用される予定です。"),
        ("gb18030", "政府星期一决定，新规定将从明年开始实施，所有企业都必须遵守。"),
        ("euc_kr", "정부는 월요일에 새로운 규칙이 내년부터 시행될 것이라고 결정했다."),
    ],
)
def test_a_text_without_a_mark_is_read_by_what_its_bytes_look_like(
    encoding: str, text: str
) -> None:
    assert parse_document(text.encode(encoding), "text.txt").text == text


def test_one_bad_byte_does_not_turn_a_text_into_another_encoding() -> None:
    parsed = parse_document((GERMAN * 5).encode()[:-1] + b"\xff.", "log.txt")
    assert parsed.text.startswith("Die Bundesregierung")
    assert "für" in parsed.text


def test_what_the_database_cannot_store_is_taken_out() -> None:
    content = b"one\0 two\r\nthree\rfour \xed\xa0\x80five"
    assert parse_document(content, "notes.txt").text == "one two\nthree\nfour five"


@given(st.binary(max_size=200), st.sampled_from(["a.txt", "a.md", "a.json", "a.csv", "a", "a.xyz"]))
def test_any_bytes_are_read_or_refused(content: bytes, filename: str) -> None:
    try:
        parsed = parse_document(content, filename)
    except DocumentRejected:
        return
    assert parsed.text.strip()
    assert "\0" not in parsed.text
    parsed.text.encode()


@pytest.mark.parametrize(
    ("filename", "markup", "media_type"),
    [
        ("a.txt", "plain", "text/plain"),
        ("a.MD", "markdown", "text/markdown"),
        ("a.rst", "rst", "text/x-rst"),
        ("a.org", "org", "text/x-org"),
        ("a.py", "code", "text/x-source-code"),
        ("a.yaml", "code", "application/yaml"),
        ("Makefile", "code", "text/x-source-code"),
        ("server.log", "plain", "text/plain"),
        ("no extension", "plain", "text/plain"),
        ("a.unheardof", "plain", "text/plain"),
    ],
)
def test_a_text_is_its_own_text(filename: str, markup: Markup, media_type: str) -> None:
    text = "one: 1\n\n\n  two\n"
    parsed = parse_document(text.encode(), filename)
    assert (parsed.text, parsed.markup, parsed.media_type) == (text, markup, media_type)
    assert parsed.pages == ()


def test_front_matter_becomes_metadata_and_leaves_the_text() -> None:
    content = b"""---
title: Leave policy
tags: [hr, leave]
date: 2024-05-01
draft: false
weight: 3
nested: {a: 1}
---
# Holidays

Thirty days.
"""
    parsed = parse_document(content, "leave.md")
    assert parsed.title == "Leave policy"
    assert parsed.text == "# Holidays\n\nThirty days.\n"
    assert parsed.metadata == {
        "tags": ["hr", "leave"],
        "date": "2024-05-01",
        "draft": False,
        "weight": 3,
    }


def test_toml_front_matter_is_read_too() -> None:
    parsed = parse_document(b'+++\ntitle = "Leave"\norder = 2\n+++\nText.', "a.md")
    assert (parsed.title, parsed.metadata, parsed.text) == ("Leave", {"order": 2}, "Text.")


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nA rule, then text.\n\n---\n\nmore",
        "---\n: [broken\n---\ntext",
        "---\nnever closed",
        "text\n---\na: b\n---\n",
        "+++\nno toml\n+++\ntext",
    ],
)
def test_what_is_no_front_matter_stays_in_the_text(text: str) -> None:
    parsed = parse_document(text.encode(), "a.md")
    assert parsed.text == text
    assert parsed.metadata == {}


def test_front_matter_that_repeats_itself_without_end_stays_small() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    content = "---\n" + "\n".join(lines) + "\n---\ntext"
    parsed = parse_document(content.encode(), "a.md")
    assert parsed.metadata == {"a": ["x"] * 9}


@pytest.mark.parametrize("number", [".nan", ".inf", "1" + "0" * 400])
def test_numbers_that_json_cannot_hold_become_texts(number: str) -> None:
    metadata = parse_document(f"---\nn: {number}\n---\ntext".encode(), "a.md").metadata
    assert isinstance(metadata["n"], str)


@pytest.mark.parametrize(
    ("filename", "text", "title"),
    [
        ("a.md", "intro\n\n## The *first* heading\n\n# Another", "The first heading"),
        ("a.md", "```\n# code\n```\n\nReal\n====\n", "Real"),
        ("a.rst", "=====\nTitle\n=====\n\ntext", "Title"),
        ("a.org", "#+TITLE: From the header\n* Heading", "From the header"),
        ("a.org", "* Heading\ntext", "Heading"),
        ("deep/folder/my notes.v2.txt", "# comment", "my notes.v2"),
        ("script.py", "# comment\nx = 1", "script"),
        (".gitignore", "*.pyc", ".gitignore"),
    ],
)
def test_the_title_is_the_first_heading_or_the_name(filename: str, text: str, title: str) -> None:
    assert parse_document(text.encode(), filename).title == title


def test_a_title_has_a_bound() -> None:
    content = f"---\ntitle: {'long ' * 1000}\n---\ntext".encode()
    assert len(parse_document(content, "a.md").title) <= TITLE_CHARS_MAX


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (GERMAN, "german"),
        ("The quick brown fox jumps over the lazy dog while the company reviews its plans " * 3,
         "english"),
        ("これは日本語の文章です。新しい規則は来年から適用される予定です。" * 4, "simple"),
        ("Kurz.", "english"),
        ("1 2 3 4 5 " * 40, "english"),
    ],
    ids=["german", "english", "without a stemmer", "too short to tell", "numbers"],
)  # fmt: skip
def test_the_language_is_told_where_it_can_be(text: str, language: str) -> None:
    assert parse_document(text.encode(), "a.txt").language == language


@pytest.mark.parametrize(
    ("content", "filename", "reason"),
    [
        (b"", "a.txt", "the file is empty"),
        (b"", "a.pdf", "the file is empty"),
        (b" \n\t\xc2\xa0\n", "a.txt", "the file is empty"),
        (b"---\ntitle: only this\n---\n", "a.md", "no text was found in it"),
        (bytes(range(256)) * 8, "a.txt", "its name says plain text, but its content is not text"),
        (bytes(range(256)) * 8, "a.csv", "its name says a CSV table, but its content is not text"),
        (bytes(range(256)) * 8, "a.x", "not a supported format (its content is not text)"),
        (b"\0" * 500, "a.x", "not a supported format (its content is not text)"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, filename: str, reason: str) -> None:
    assert refusal(content, filename) == reason


@pytest.mark.parametrize(
    ("filename", "text", "language"),
    [
        ("a.py", "x = 1", "python"),
        ("a.mjs", "let x = 1", "javascript"),
        ("a.ts", "let x = 1", "typescript"),
        ("a.tsx", "let x = <b/>", "tsx"),
        ("a.go", "package a", "go"),
        ("a.rs", "fn a() {}", "rust"),
        ("A.java", "class A {}", "java"),
        ("a.c", "int a;", "c"),
        ("a.h", "int a(void);", "c"),
        ("a.h", "#pragma once\nnamespace a { int b(); }", "cpp"),
        ("a.cc", "int a;", "cpp"),
        ("A.cs", "class A {}", "c_sharp"),
        ("a.rb", "def a; end", "ruby"),
        ("a.php", "<?php f();", "php"),
        ("a.sh", "ls", "bash"),
        ("tool", "#!/usr/bin/env -S python3 -u\nprint(1)", "python"),
        ("tool", "#!/bin/sh\nls", "bash"),
        ("page", "<?php f();", "php"),
        ("a.kt", "fun main() {}", None),
        ("a.yaml", "a: 1", None),
    ],
)
def test_a_program_tells_its_language(filename: str, text: str, language: str | None) -> None:
    parsed = parse_document(text.encode(), filename)
    assert (parsed.markup, parsed.code_language) == ("code", language)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("新しい規則は来年から適用される予定です。全社員は三十日の休暇を取得できます。", "休暇"),
        ("政府星期一决定新规定将从明年开始实施。所有员工每年享有三十天的假期。", "假期"),
        (
            "정부는 새로운 규칙이 내년부터 시행될 것이라고 결정했다. 모든 직원은 휴가를 쓴다.",
            "휴가",
        ),
    ],
    ids=["Japanese", "Chinese", "Korean"],
)
@pytest.mark.parametrize("times", [1, 6])
def test_what_is_written_without_spaces_is_found_by_pairs(
    text: str, question: str, times: int
) -> None:
    for content, filename in (
        ((text * times).encode(), "a.txt"),
        (f"<html><p>{text * times}</p></html>".encode(), "a.html"),
        (samples.docx(samples.paragraph(text * times)), "a.docx"),
    ):
        parsed = parse_document(content, filename)
        assert parsed.language in ("simple", "english")
        assert set(extract_terms(question)) <= set(extract_terms(parsed.text, parsed.language))
