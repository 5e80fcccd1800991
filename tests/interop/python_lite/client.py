"""A program of the pure-Python client: what it is told on the command line, printed as JSON lines.

python client.py ADDRESS follow INPUT     events, then the text, then the output of a new run
python client.py ADDRESS watch RUN AFTER  events after a sequence, then the output
python client.py ADDRESS cancel INPUT     creates a run, cancels it and says how it ended
python client.py ADDRESS refuse           says how a run of an unknown model ended, and one that never was
"""

from __future__ import annotations

import asyncio
import json
import sys

from behest_lite.client import Client, RunHandle
from behest_lite.errors import BehestError, RunEndedError
from behest_lite.follow import kind_of


def say(**fields: object) -> None:
    """Print a document at once."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def follow(run: RunHandle) -> None:
    """Follow a run in events and in text at once, then print its end."""

    async def events() -> None:
        async for event in run.events():
            say(sequence=event.sequence, kind=kind_of(event), run=event.run_id)

    async def text() -> None:
        say(text=[piece async for piece in run.text()])

    await run.create()
    async with asyncio.TaskGroup() as group:
        group.create_task(events())
        group.create_task(text())
    await end(run)


async def end(run: RunHandle) -> None:
    """Print how a run ended."""
    try:
        output = await run.result()
    except RunEndedError as error:
        say(ended=error.kind, reason=error.reason, code=error.code.name)
    except BehestError as error:
        say(error=error.reason, code=error.code.name, metadata=error.metadata)
    else:
        say(output=output.text)


async def main() -> None:
    """Do what is told."""
    address, what, *rest = sys.argv[1:]
    async with Client(address) as client:
        match what:
            case "follow":
                await follow(client.stream(rest[0]))
            case "watch":
                run = client.watch(rest[0], after=int(rest[1]))
                say(sequences=[event.sequence async for event in run.events()])
                await end(run)
            case "cancel":
                run = await client.run(rest[0])
                await run.cancel()
                await end(run)
            case "refuse":
                await end(client.watch("no-such-run"))
                await end(client.stream("/fail UNAVAILABLE"))
    loaded = {name.partition(".")[0] for name in sys.modules}
    say(foreign=sorted(loaded & {"grpc", "google", "cygrpc"}))


if __name__ == "__main__":
    asyncio.run(main())
