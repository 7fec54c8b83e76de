"""Timeouts that run on the event loop's time: what a busy loop takes for itself does not count.

A reply that is there is not late because nobody has come to read it. With an ordinary timeout a burst of
requests looks like a server that hangs, and everything that was shared through it is given up.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

STEPS = 5
"""The time passes in so many steps, each at most once in a pass of the loop; in every pass it reads
what has arrived, opens the next connection, and so on."""
GRACE_SECONDS = 0.002
"""After the last step: some loops run what is due before they read."""


@asynccontextmanager
async def patience(seconds: float) -> AsyncGenerator[None]:
    """Raises TimeoutError after this time, and no sooner than the loop has passed STEPS times."""
    loop = asyncio.get_running_loop()
    left = STEPS

    def step() -> None:
        nonlocal left, waiting
        left -= 1
        if left:
            waiting = loop.call_later(seconds / STEPS, step)
        else:
            deadline.reschedule(loop.time() + GRACE_SECONDS)

    async with asyncio.timeout(None) as deadline:
        waiting = loop.call_later(seconds / STEPS, step)
        try:
            yield
        finally:
            waiting.cancel()
