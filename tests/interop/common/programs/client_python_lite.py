"""Does by the pure-Python client what its arguments say, and prints what it sees as lines of JSON.

python client_python_lite.py ADDRESS follow TEXT        orders a run and follows it
python client_python_lite.py ADDRESS watch RUN AFTER    follows a run from behind an event on
python client_python_lite.py ADDRESS cancel TEXT        orders a run and cancels it
python client_python_lite.py ADDRESS watches RUN COUNT  follows a run by many watches at once

A line is an event's sequence or a piece of text; the last one is how the run ended. Of many watches a line is the
number of the watch and a sequence.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
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
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(events())
            group.create_task(text())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def follow_by_many(client: Client, run_id: str, count: int) -> RunHandle:
    """Follow a run by many watches, and return one of them."""

    async def watch(number: int) -> None:
        async for event in runs[number].events():
            tell(watch=number, sequence=event.sequence)

    runs = [client.watch(run_id) for _ in range(count)]
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(watch(number))
    return runs[0]


async def main() -> None:
    """Do what is told."""
    address, order, subject, *rest = sys.argv[1:]
    tls = ssl.create_default_context(cafile=os.environ["CA_FILE"]) if "CA_FILE" in os.environ else None
    async with Client(address, token=os.environ.get("TOKEN", ""), tls=tls) as client:
        run = client.watch(subject, after=int(rest[0])) if order == "watch" else client.stream(subject)
        try:
            if order == "watches":
                run = await follow_by_many(client, subject, int(rest[0]))
            elif order == "watch":
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
