"""A Ray cluster of two nodes on this machine, in a process of its own: `python -m tests.ray_nodes`.

Prints its address as one line; then a line "kill" from standard input takes the second node away at
once, answered by "killed". Ends, with all that it started, when standard input does.
"""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    second = cluster.add_node(**NODE)
    try:
        say(cluster.address)
        for line in sys.stdin:
            if line.strip() == "kill":
                cluster.remove_node(second, allow_graceful=False)
                say("killed")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
