"""The language of a text, as the name of its Snowball stemmer."""

import re

import kreuzberg

SAMPLE_CHARS = 4000
SHORT_CHARS = 100

_STEMMERS = {
    "ara": "arabic", "hye": "armenian", "eus": "basque", "cat": "catalan", "ces": "czech",
    "dan": "danish", "nld": "dutch", "eng": "english", "epo": "esperanto", "est": "estonian",
    "fin": "finnish", "fra": "french", "deu": "german", "ell": "greek", "hin": "hindi",
    "hun": "hungarian", "ind": "indonesian", "gle": "irish", "ita": "italian",
    "lit": "lithuanian", "nep": "nepali", "nob": "norwegian", "nor": "norwegian",
    "pes": "persian", "pol": "polish", "por": "portuguese", "ron": "romanian", "rus": "russian",
    "srp": "serbian", "spa": "spanish", "swe": "swedish", "tam": "tamil", "tur": "turkish",
    "yid": "yiddish",
}  # fmt: skip

# File names are in no language, and lists of links have more of them than of words.
_LINK_TARGET = re.compile(r"\]\([^()]*\)")

_DETECTION = kreuzberg.ExtractionConfig(
    use_cache=False,
    enable_quality_processing=False,
    language_detection=kreuzberg.LanguageDetectionConfig(enabled=True),
)


def detect_language(text: str) -> str:
    """The stemmer for the text; "simple" where its language has none.

    English where that cannot be told: a table, a program, a few words.
    """
    sample = _LINK_TARGET.sub("", text[:SAMPLE_CHARS])
    if len(sample) < SHORT_CHARS:
        return "english"
    result = kreuzberg.extract_bytes_sync(sample.encode(), "text/plain", _DETECTION)
    if not result.detected_languages:
        return "english"
    return _STEMMERS.get(result.detected_languages[0], "simple")
