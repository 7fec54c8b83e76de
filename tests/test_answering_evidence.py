"""Whether a passage bears a sentence out."""

import pytest

from app.answering.evidence import Evidence, Match, Statement, is_supported
from tests.test_answering_extractive import hit

PASSAGE = (
    "# Keys\n\nAn API key expires after 90 days. Keys cannot be shared between teams.\n\n"
    "Maria Keller revokes lost keys within 1,000 seconds. The fee is 3.50 euros for three keys."
)
QUESTION = Statement("What about the keys of Berlin?")


def verdict(claim_text: str, similarity: float | None = 0.8) -> bool:
    claim = Statement(claim_text)
    evidence = Evidence(hit(PASSAGE, title="Security handbook"))
    best = max(
        (Match(window, similarity) for window in evidence.shortlist(claim)),
        key=lambda match: match.likeness(claim),
    )
    return is_supported(claim, [best], [evidence], QUESTION)


@pytest.mark.parametrize(
    "claim",
    [
        "An API key expires after 90 days.",
        "API keys expire after 90 days.",
        "Lost keys are revoked by Maria Keller within 1000 seconds.",
        "The fee for 3 keys is 3.5 euros.",
        "Keys can't be shared between teams.",
        "In Berlin an API key expires after 90 days.",
        "The Security handbook says that an API key expires after 90 days.",
    ],
)
def test_a_faithful_sentence_is_supported(claim: str) -> None:
    assert verdict(claim)


@pytest.mark.parametrize(
    "claim",
    [
        "An API key expires after 30 days.",
        "Lost keys are revoked by Peter Keller within 1,000 seconds.",
        "An API key does not expire after 90 days.",
        "Keys can be shared between teams.",
        "The fee is 3.05 euros for three keys.",
    ],
)
def test_a_wrong_number_name_or_negation_overrules_likeness(claim: str) -> None:
    assert not verdict(claim, similarity=0.99)


def test_likeness_decides_first() -> None:
    assert not verdict("The office garden has roses and tulips.", similarity=0.2)
    assert verdict("An API key ceases to be valid after 90 days.", similarity=0.9)
    assert not verdict("An API key ceases to be valid after 90 days.", similarity=0.3)


def test_without_similarity_words_alone_must_do() -> None:
    assert verdict("An API key expires after 90 days.", similarity=None)
    assert not verdict("An API key ceases to be valid after 90 days.", similarity=None)


def test_nothing_supports_a_sentence_without_sources() -> None:
    assert not is_supported(Statement("Anything."), [], [], QUESTION)


def test_the_quote_is_no_longer_than_needed() -> None:
    evidence = Evidence(hit(PASSAGE))
    one = evidence.shortlist(Statement("API key expires after 90 days"))[0]
    assert PASSAGE[one.start : one.end] == "An API key expires after 90 days."
    two = evidence.shortlist(Statement("key expires after 90 days, keys shared between teams"))[0]
    assert PASSAGE[two.start : two.end] == (
        "An API key expires after 90 days. Keys cannot be shared between teams."
    )


def test_two_sources_together_bear_out_what_neither_does_alone() -> None:
    claim = Statement("Travel is approved by the lead and meals cost 45 euros.")
    sources = [
        Evidence(hit("Travel is approved by the lead.")),
        Evidence(hit("Meals cost 45 euros.")),
    ]
    matches = [Match(each.shortlist(claim)[0], 0.5) for each in sources]
    assert is_supported(claim, matches, sources, QUESTION)
    assert not is_supported(claim, matches[:1], sources[:1], QUESTION)
