"""Is anything that the caches give stale, or somebody else's, whatever changes in between?

A proof more than a measurement: random interleavings of edits, deletions, insertions, revoked
groups, switched models, changed prompts and questions, in which each answer is held against the
one of the world as it is now. It ends with 1 and the steps that led there when one differs, and
prints its seed. `tests/test_cache_property.py` shows that it finds any key that lacks a component.

    python benchmarks/interleavings.py [--examples 10000] [--seed 1]
"""

import argparse
import json
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.cache_world import Interleavings


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=20, help="in each, at most")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.perf_counter()
    print(f"seed {arguments.seed}", flush=True)
    run_state_machine_as_test(
        seed(arguments.seed)(Interleavings),
        settings=settings(
            max_examples=arguments.examples,
            stateful_step_count=arguments.steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    result = {
        "interleavings": arguments.examples,
        "seed": arguments.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "lookups": dict(sorted(Interleavings.outcomes.items())),
        "stale_or_of_others": 0,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
