"""What a leader's failure is to those who waited for the same answer."""

import pytest

from app.cache.transcript import failed, failure
from app.errors import BudgetExhausted, FootnoteError, GenerationUnavailable, Overloaded


@pytest.mark.parametrize(
    "error",
    [
        BudgetExhausted("spent", hint="raise it"),
        GenerationUnavailable("away", retry_after_seconds=7),
        Overloaded("busy"),
    ],
)
def test_a_follower_gets_the_same_failure(error: FootnoteError) -> None:
    told = failure(failed(error))
    assert type(told) is type(error)
    assert (told.detail, told.hint, told.headers) == (error.detail, error.hint, error.headers)
