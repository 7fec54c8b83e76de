"""`python -m tests.doubles.ollama`: see the package."""

import argparse
import asyncio
import json
import sys

from tests.doubles.ollama.behaviour import Behaviour
from tests.doubles.ollama.server import Server


async def run(port: int, control_port: int, behaviour: Behaviour) -> None:
    server = Server(behaviour)
    await server.listen(port)
    await server.change(behaviour)
    control_port = await server.listen_for_control(control_port)
    sys.stdout.write(f"{server.port} {control_port}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A double of Ollama; see Behaviour.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--control-port", type=int, default=0)
    parser.add_argument("--speed", type=float, help="tokens per second of one answer alone")
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--behaviour", type=json.loads, default={}, help="more of it, as JSON")
    arguments = parser.parse_args()
    given = {"slots": arguments.slots, "load_seconds": arguments.load_seconds}
    given |= arguments.behaviour
    behaviour = (
        Behaviour.of_speed(arguments.speed, **given) if arguments.speed else Behaviour(**given)
    )
    asyncio.run(run(arguments.port, arguments.control_port, behaviour))


if __name__ == "__main__":
    main()
