"""Does by the Python SDK what its arguments say, and prints what it sees as lines of JSON.

python client_python.py ADDRESS follow TEXT        orders a run and follows it
python client_python.py ADDRESS watch RUN AFTER    follows a run from behind an event on
python client_python.py ADDRESS cancel TEXT        orders a run and cancels it

A line is an event's sequence, a piece of text or that the text was taken back; the last one is how the run ended.
"""

from __future__ import annotations

import asyncio
import json
import sys

from behest.client import Client
from behest.errors import BehestError, RunCancelledError, RunFailedError
from behest.runs import RunHandle
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


async def main() -> None:
    """Do what is told."""
    address, order, subject, *rest = sys.argv[1:]
    async with Client(address) as client:
        run = client.watch(subject, after=int(rest[0])) if order == "watch" else client.stream(subject)
        try:
            await follow(run, is_cancelling=order == "cancel")
            output = await run.result()
        except BehestError as error:
            ends = {RunCancelledError: "cancelled", RunFailedError: "failed"}
            tell(end=ends.get(type(error), ""), run=run.run_id, output="", reason=error.reason)
        else:
            tell(end="completed", run=run.run_id, output=output.text, reason="")


if __name__ == "__main__":
    asyncio.run(main())
