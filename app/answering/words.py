"""The words of a text that carry its meaning."""

from app.terms import extract_terms

_FUNCTION_WORDS = (
    "what which who whom whose when where why how do does did done can could should would may "
    "might must shall i you we he she me us him my your our his her its have has had am were been "
    "being about any some from than more most many much also so just get please tell explain "
    "describe give show say mean does it's there's"
)
_FUNCTION_TERMS = frozenset(extract_terms(_FUNCTION_WORDS))
"""Words that questions are made of; an index keeps most of them, but they match everywhere."""


def content_terms(text: str) -> list[str]:
    """The distinct terms of a text, in its order, without words that only build the sentence."""
    return [term for term in dict.fromkeys(extract_terms(text)) if term not in _FUNCTION_TERMS]
