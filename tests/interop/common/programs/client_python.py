"""Does by the Python SDK what its arguments say, and prints what it sees as lines of JSON.

python client_python.py ADDRESS follow TEXT        orders a run and follows it
python client_python.py ADDRESS watch RUN AFTER    follows a run from behind an event on
python client_python.py ADDRESS cancel TEXT        orders a run and cancels it
python client_python.py ADDRESS watches RUN COUNT  follows a run by many watches at once

A line is an event's sequence, a piece of text or that the text was taken back; the last one is how the run ended. Of
many watches a line is the number of the watch and a sequence.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from behest.client import Client
from behest.errors import BehestError, RunCancelledError, RunFailedError
from behest.runs import RunHandle
from behest.security import Tls
from behest.updates import Discarded
from behest.v1.event_pb2 import Event


def tell(**seen: object) -> None:
    """Print a line at once."""
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()


async def follow(run: RunHandle, *, is_cancelling: bool) -> None:
    """Follow a run, and cancel it at its first event if that is wanted."""
    async for update in run.updates():
        match update:
            case Event():
                tell(sequence=update.sequence)
                if is_cancelling:
                    is_cancelling = False
                    await run.cancel()
            case Discarded():
                tell(discarded=True)
            case _ if update.text:
                tell(text=update.text)


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
    tls = Tls(ca=os.environ["CA_FILE"]) if "CA_FILE" in os.environ else None
    async with Client(address, token=os.environ.get("TOKEN", ""), tls=tls) as client:
        run = client.watch(subject, after=int(rest[0])) if order == "watch" else client.stream(subject)
        try:
            if order == "watches":
                run = await follow_by_many(client, subject, int(rest[0]))
            else:
                await follow(run, is_cancelling=order == "cancel")
            output = await run.result()
        except BehestError as error:
            ends = {RunCancelledError: "cancelled", RunFailedError: "failed"}
            tell(end=ends.get(type(error), ""), run=run.run_id, output="", reason=error.reason)
        else:
            tell(end="completed", run=run.run_id, output=output.text, reason="")


if __name__ == "__main__":
    asyncio.run(main())
