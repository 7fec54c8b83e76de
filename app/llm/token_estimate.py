"""About how many tokens a text has, for models whose tokenizer is not here. Pure."""

# The real figure differs from model to model; these are low, because a prompt that is too long
# is silently cut by the server, and by its beginning.
ASCII_CHARS_PER_TOKEN = 3.2
_OTHER_CHARS_PER_TOKEN = 1.0


def estimate_tokens(text: str) -> int:
    """About how many tokens a model will count, rather too many than too few."""
    ascii_count = len(text.encode("ascii", "ignore"))
    other_count = len(text) - ascii_count
    return int(ascii_count / ASCII_CHARS_PER_TOKEN + other_count / _OTHER_CHARS_PER_TOKEN) + 1
