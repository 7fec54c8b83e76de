import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.terms import MAX_TERM_CHARS, extract_terms, read_terms


def test_words_are_stemmed_and_keep_their_order_and_number() -> None:
    assert extract_terms("Connections connect; connecting is CONNECTED!") == ["connect"] * 4


@pytest.mark.parametrize("text", ["", "   \n\t", "the and of", "?!… — *", "a b c", "\x00\x00"])
def test_text_without_subject_has_no_terms(text: str) -> None:
    assert extract_terms(text) == []


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("ERR_CONN_RESET", ["err", "conn", "reset", "err_conn_reset"]),
        ("v2.3.1", ["v2", "3", "1", "2.3.1"]),
        ("§ 14", ["14", "§14"]),
        (".NET", ["net", ".net"]),
        ("foo.bar()", ["foo", "bar", "foo.bar"]),
        ("parseHTTPResponse", ["parsehttprespons", "pars", "http", "respons"]),
        ("userIDs", ["userid", "user", "id"]),
        ("R&D and I/O", ["r&d", "i/o"]),
        ("either/or and this/that", ["either"]),
        ("e.g. J.R.R. Tolkien", ["jrr", "tolkien"]),
        ("CVE-2024-1234.", ["cve", "2024", "1234", "cve-2024-1234"]),
        ("__init__", ["init"]),
        ("os.path.join", ["os", "path", "join", "os.path.join"]),
        ("getUserName", ["getusernam", "get", "user", "name"]),
        ("C++ and C#", ["c++", "c#"]),
        ("the e-mail", ["mail", "email"]),
        ("well-known", ["well", "known"]),
    ],
)
def test_an_identifier_is_found_whole_and_by_its_parts(text: str, terms: list[str]) -> None:
    assert extract_terms(text) == terms


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("the wing's shape", ["wing", "shape"]),
        ("it’s what we don't know", ["know"]),
        ("O'Brien", ["o'brien"]),
    ],
)
def test_apostrophes(text: str, terms: list[str]) -> None:
    assert extract_terms(text) == terms


def test_acronyms_that_look_like_stop_words_are_kept() -> None:
    assert extract_terms("the IT team asks WHO") == ["it", "team", "ask", "who"]
    assert extract_terms("WHAT IS THE POLICY") == ["polici"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("naïve façade", "naive facade"),
        ("ﬁnance", "finance"),
        ("ＡＢＣ", "abc"),
        ("Straße", "STRASSE"),
        (unicodedata.normalize("NFD", "café"), "café"),
    ],
)
def test_ways_of_writing_the_same_word_agree(one: str, other: str) -> None:
    assert extract_terms(one) == extract_terms(other) != []


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("ERR_CONN_RESET", "err conn reset"),
        ("err_conn_reset", "ERR-CONN-RESET"),
        ("getUserName", "get_user_name"),
        ("http server", "HTTPServer"),
        ("version 2.3.1", "v2.3.1"),
        ("§14", "see § 14 below"),
        ("section 14", "§ 14"),
        ("CVE 2024 1", "CVE-2024-1"),
        ("bar", "foo.bar()"),
        ("net", "the .NET runtime"),
        ("node", "node.js"),
        ("NodeJS", "node.js"),
        ("USA", "the U.S.A. is"),
        ("U.S.", "the US team"),
        ("emails", "an E-Mail"),
        ("1000000", "1,000,000 rows"),
        ("Lodz", "Łódź"),
        ("ｖ２.3.1", "v2.3.1"),
    ],
)
def test_identifiers_are_found_by_other_ways_of_writing_them(asked: str, written: str) -> None:
    assert set(extract_terms(asked)) & set(extract_terms(written))


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("german", "Müller", "Mueller"),
        ("german", "Größe", "groesse"),
        ("french", "élève", "eleve"),
        ("spanish", "información", "informacion"),
        ("spanish", "información", "informaciones"),
        ("portuguese", "informações", "informacoes"),
        ("polish", "Łódź", "lodz"),
        ("danish", "København", "kobenhavn"),
        ("russian", "ёлка", "елка"),
        ("greek", "άνθρωπος", "ανθρωπος"),
        ("turkish", "İstanbul", "istanbul"),
        ("simple", "Café", "cafe"),
    ],
)
def test_accents_may_be_left_out_in_any_language(language: str, one: str, other: str) -> None:
    assert set(extract_terms(one, language)) & set(extract_terms(other, language))


def test_accents_of_other_scripts_make_other_letters() -> None:
    assert extract_terms("мой", "simple") != extract_terms("мои", "simple")
    assert extract_terms("が", "simple") != extract_terms("か", "simple")


@pytest.mark.parametrize(
    ("language", "text", "terms"),
    [
        ("german", "Die Häuser", ["die", "haus"]),
        ("french", "les continuations de l’avion", ["le", "continu", "de", "avion"]),
        ("russian", "книги", ["книг"]),
        ("simple", "the Running houses", ["running", "houses"]),
        ("klingon", "the Running houses", ["running", "houses"]),
    ],
)
def test_each_language_has_its_own_stems(language: str, text: str, terms: list[str]) -> None:
    assert extract_terms(text, language) == terms


def test_scripts_without_spaces_give_pairs() -> None:
    assert extract_terms("日本語のテスト") == ["日本", "本語", "語の", "のテ", "テス", "スト"]
    assert extract_terms("水") == ["水"]
    assert extract_terms("Python入門 guide") == ["python", "入門", "guid"]
    assert extract_terms("한국어") == ["한국", "국어"]


def test_words_with_combining_marks_stay_whole() -> None:
    assert extract_terms("हिन्दी भाषा", "simple") == ["हिन्दी", "भाषा"]


@pytest.mark.parametrize("word", ["x" * 2_000_000, "a1" * 1_000_000, "ab." * 700_000])
def test_a_huge_word_is_cut_in_good_time(word: str) -> None:
    started = time.thread_time()
    assert all(0 < len(term) <= MAX_TERM_CHARS for term in extract_terms(word))
    assert time.thread_time() - started < 10


@given(st.text(), st.sampled_from(["english", "german", "simple"]))
def test_any_text_gives_short_terms_and_the_same_ones_each_time(text: str, language: str) -> None:
    terms = extract_terms(text, language)
    assert terms == extract_terms(text, language)
    for term in terms:
        assert 0 < len(term) <= MAX_TERM_CHARS
        term.encode()  # nothing that a database would refuse
        assert "\0" not in term


@given(st.lists(st.sampled_from(["wing", "the", "v2.3.1", "日本語", "isn't"]), max_size=8))
def test_terms_of_a_text_are_those_of_its_words(words: list[str]) -> None:
    apart = [term for word in words for term in extract_terms(word)]
    assert extract_terms(" ".join(words)) == apart


def test_threads_do_not_disturb_each_other() -> None:
    texts = [" ".join(f"running{n} houses{n} {n}" for n in range(i, i + 300)) for i in range(50)]
    expected = [extract_terms(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(extract_terms, texts)) == expected


# --- read in several languages --------------------------------------------------------------------


def test_a_word_has_a_reading_for_each_language() -> None:
    read = read_terms("values of 2024 in Basel", ["english", "simple", "german"])
    assert read == [("valu", "values", "valus"), ("2024",), ("basel",)]


def test_where_languages_count_words_differently_each_stands_alone() -> None:
    assert read_terms("don't travel", ["english", "simple"]) == [("don",), ("travel",)]


@given(text=st.text(), language=st.sampled_from(["english", "french", "simple"]))
def test_one_language_reads_what_it_indexes(text: str, language: str) -> None:
    assert [term for (term,) in read_terms(text, [language])] == extract_terms(text, language)
