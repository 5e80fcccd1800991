"""Does by the pure-Python client what its arguments say, and prints what it sees as lines of JSON.

python client_python_lite.py ADDRESS follow TEXT        orders a run and follows it
python client_python_lite.py ADDRESS watch RUN AFTER    follows a run from behind an event on
python client_python_lite.py ADDRESS cancel TEXT        orders a run and cancels it

A line is an event's sequence or a piece of text; the last one is how the run ended.
"""

from __future__ import annotations

import asyncio
import json
import sys

from behest_lite.client import Client, RunHandle
from behest_lite.errors import BehestError, RunEndedError


def tell(**seen: object) -> None:
    """Print a line at once."""
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()


async def follow(run: RunHandle, *, is_cancelling: bool) -> None:
    """Follow a run in events and in text at once, and cancel it at its first event if that is wanted."""

    async def events() -> None:
        is_due = is_cancelling
        async for event in run.events():
            tell(sequence=event.sequence)
            if is_due:
                is_due = False
                await run.cancel()

    async def text() -> None:
        async for piece in run.text():
            tell(text=piece)

    await run.create()
    async with asyncio.TaskGroup() as group:
        group.create_task(events())
        group.create_task(text())


async def main() -> None:
    """Do what is told."""
    address, order, subject, *rest = sys.argv[1:]
    async with Client(address) as client:
        run = client.watch(subject, after=int(rest[0])) if order == "watch" else client.stream(subject)
        try:
            if order == "watch":
                async for event in run.events():
                    tell(sequence=event.sequence)
            else:
                await follow(run, is_cancelling=order == "cancel")
            output = await run.result()
        except BehestError as error:
            end = error.kind.removeprefix("run_") if isinstance(error, RunEndedError) else ""
            tell(end=end, run=run.run_id, output="", reason=error.reason)
        else:
            tell(end="completed", run=run.run_id, output=output.text, reason="")


if __name__ == "__main__":
    asyncio.run(main())
