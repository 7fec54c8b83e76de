import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidInput
from app.search.query import ParsedQuery, read_query


@pytest.mark.parametrize(
    ("query", "understood"),
    [
        (
            'hotels "free cancellation" -hostel config*',
            ParsedQuery(
                "hotels free cancellation config", ("free cancellation",), ("hostel",), ("config",)
            ),
        ),
        ('-"a phrase" wing', ParsedQuery("wing", excluded=("a phrase",))),
        ("“curly  quotes” x", ParsedQuery("curly quotes x", ("curly quotes",))),
        ("„deutsche Zeichen“ x", ParsedQuery("deutsche Zeichen x", ("deutsche Zeichen",))),
        ("« des mots » x", ParsedQuery("des mots x", ("des mots",))),
        ("jaguar -TV -C++", ParsedQuery("jaguar", excluded=("TV", "C++"))),
        ("-ERR_CONN_RESET proxy", ParsedQuery("proxy", excluded=("ERR_CONN_RESET",))),
        ('"one" "one" "two"', ParsedQuery("one one two", ("one", "two"))),
        ("-java", ParsedQuery("", excluded=("java",))),
        ('"-word"', ParsedQuery("-word", ("-word",))),
        ("-水 日本", ParsedQuery("日本", excluded=("水",))),
        ("node.js*", ParsedQuery("node.js", prefixes=("node.js",))),
        ('a "b" c "d', ParsedQuery('a b c "d', ("b",))),
        ("is it an apple? -fruit", ParsedQuery("is it an apple?", (), ("fruit",), (), True)),
        ('what is the "apple"', ParsedQuery("what is the apple", ("apple",), is_question=True)),
    ],
)
def test_operators_are_understood(query: str, understood: ParsedQuery) -> None:
    assert read_query(query) == understood


@pytest.mark.parametrize(
    "query",
    [
        "",
        '"',
        '" "',
        '"" x',
        "-",
        "--",
        "- foo",
        "foo -",
        "-1",
        "temperature -5 degrees",
        "2019 -2021",
        "10-20",
        "e-mail",
        "--mode daemon",
        "rm -rf",
        "java -jar app.jar",
        "clang -Dname=value",
        "foo -bar- baz",
        '24" monitor 27" screen',
        "*args **kwargs",
        "model *",
        "5 * 3",
        "a* b",
        "SELECT * FROM t",
        "the engineer's 'single' quotes",
        'say "goodbye',
        "what methods -dash exact or approximate -dash are presently available for bodies?",
        'What works are there of the poet Ginsburg besides the poem "Howl" and his letters?',
        "is java -jar slow?",
    ],
)
def test_ordinary_text_stays_as_it_is(query: str) -> None:
    assert read_query(query) == ParsedQuery(query)


def test_the_end_of_a_long_question_may_leave_something_out() -> None:
    question = "how do I set up the retries of a client that -somehow fails -java"
    assert read_query(question).excluded == ("java",)


@pytest.mark.parametrize("operators", ['"w{}" ', "-word{} ", "word{}* "])
def test_a_flood_of_operators_is_refused(operators: str) -> None:
    with pytest.raises(InvalidInput, match="are allowed"):
        read_query("".join(operators.format(n) for n in range(1000)))


@given(st.text('ab1"-* _.?“”', max_size=60))
def test_any_text_is_read_and_loses_no_word_but_the_excluded(text: str) -> None:
    try:
        query = read_query(text)
    except InvalidInput:
        return
    if query.is_plain:
        assert query.text == text
    letters = sum(character.isalnum() for character in text)
    left = sum(character.isalnum() for character in "".join((query.text, *query.excluded)))
    assert left <= letters
    if not query.excluded:
        assert left == letters
