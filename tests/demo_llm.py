"""A conversation with a real small model, through the daemon, over a restart of it.

    make demo-llm

The model (`tests.llm_server`) is a process behind an OpenAI-compatible interface; the daemon is another, with SQLite on
a fresh directory. The first answer is streamed; the daemon stops and starts again; the watch of the first run brings
the same events; and a second turn goes on with the conversation. What is shown is checked; the last line is
`demo-llm: ok`.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

from behest.client import Client
from behest.runs import RunHandle
from behest.v1.chat_pb2 import Sampling
from behest.v1.delta_pb2 import Delta
from behest.v1.event_pb2 import Event
from behest.v1.run_pb2 import Run
from behest.v1.usage_pb2 import Usage
from tests.daemon_process import running
from tests.llm_server import CONTEXT_TOKENS, serving

CONFIG = """\
[providers.local]
kind = "openai"
base_url = "{url}"
max_tokens_field = "max_tokens"

[[providers.local.models]]
name = "smollm2"
capabilities = ["chat", "streaming", "json_schema"]
context_window_tokens = {context_tokens}
max_output_tokens = 256

[models]
default = "local/smollm2"
"""
SAMPLING = Sampling(temperature=0.0, seed=1, max_output_tokens=96)
FIRST = "What is the capital of France? Answer in one short sentence."
SECOND = "And which river flows through it? Answer in one short sentence."


def say(text: str) -> None:
    """Print a line of the story."""
    print(f"\n── {text}", flush=True)


async def told(handle: RunHandle) -> tuple[list[Event], int]:
    """Print an answer as it comes; gives the events, and in how many pieces the answer came."""
    events, pieces = [], 0
    async with aclosing(handle.updates()) as updates:
        async for update in updates:
            if isinstance(update, Event):
                events.append(update)
            elif isinstance(update, Delta) and update.WhichOneof("kind") == "text":
                pieces += 1
                sys.stdout.write(update.text)
                sys.stdout.flush()
    print()
    await handle.result()
    return events, pieces


async def turn(client: Client, said: str, session_id: str = "") -> tuple[Run, list[Event]]:
    """Say something and print the answer; gives the run as it ended, and its events."""
    print(f"\n> {said}")
    begun = time.monotonic()
    handle = client.stream(said, session_id=session_id, sampling=SAMPLING)
    events, pieces = await told(handle)
    run = await handle.get()
    used = usage_of(events)
    assert run.output.text.strip(), "the answer is empty"
    assert pieces > 1, f"the answer came in {pieces} piece"
    assert used.input_tokens > 0
    assert used.output_tokens > 0
    seconds = time.monotonic() - begun
    say(f"{used.input_tokens} tokens in, {used.output_tokens} out, in {pieces} pieces and {seconds:.1f} s")
    return run, events


def usage_of(events: list[Event]) -> Usage:
    """The usage of the last answer of a run."""
    return next(event.model_completed.usage for event in reversed(events) if event.HasField("model_completed"))


async def demo() -> None:
    """Tell the story."""
    with tempfile.TemporaryDirectory(prefix="behest-demo-llm-") as home:
        async with serving() as url:
            config = CONFIG.format(url=url, context_tokens=CONTEXT_TOKENS)
            async with running(Path(home), config=config) as daemon, Client(daemon.address) as client:
                say(f"SmolLM2-135M serves at {url}, behestd at {daemon.address}")
                first, events = await turn(client, FIRST)
                code = await daemon.terminate()
                assert code == 0, daemon.log
                await daemon.start()
                say(f"behestd stopped ({code}) and serves again at {daemon.address}; the first run once more")
                again = [event async for event in client.watch(first.id).events()]
                assert [event.SerializeToString() for event in again] == [event.SerializeToString() for event in events]
                say(f"{len(again)} events, the same to the byte")
                second, later = await turn(client, SECOND, first.session_id)
                assert second.session_id == first.session_id
                assert usage_of(later).input_tokens > usage_of(events).input_tokens, "the model was not told the past"
                say("the second turn was told the first: its prompt is longer")


def main() -> None:
    """Tell the story."""
    asyncio.run(demo())
    print("\ndemo-llm: ok")


if __name__ == "__main__":
    main()
