"""The main job, end to end, on real processes and real files, in about ten seconds.

    make demo                  over this repository
    make demo ARGS=DIRECTORY   over the files of another directory

A daemon with SQLite on a fresh directory, a tool server over the files, a run that calls its tools, and a second run
whose daemon is killed in the middle of a tool call and started again: the same watch goes on to the end. What is shown
is checked, and the last line is `demo: ok`. The model is `scripted`, which needs no key and no network; with
OPENAI_API_KEY set it is a real one (OPENAI_MODEL, by default gpt-4o-mini, at OPENAI_BASE_URL).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from behest.cli.follow import text_of
from behest.client import Client
from behest.runs import RunHandle
from behest.updates import Discarded, Update
from behest.v1.delta_pb2 import Delta
from behest.v1.event_pb2 import Event
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer, ServerState
from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from tests.daemon_process import DaemonProcess, running
from tests.tool_process import ToolProcess, tool_server

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODEL = "gpt-4o-mini"
PATTERN = "^# [A-Z]"
LIMIT = 3
# Long enough to kill a daemon in the middle of it.
CALL_SECONDS = 1.5
WIDTH = 100


@dataclass(frozen=True)
class Model:
    """Which model answers, and how it is told to call tools."""

    config: str
    is_scripted: bool

    def both_tools(self) -> str:
        """Ask for one call of each tool."""
        arguments = json.dumps({"pattern": PATTERN, "limit": LIMIT})
        if self.is_scripted:
            return f'/say Let me see. /tool count {{"what": "files"}}\n/next /say And now: /tool search {arguments}'
        return (
            'Call the tool count with {"what": "files"}. When you have its result, call the tool search with exactly '
            f"{arguments}. Then tell in one sentence how many files there are and what was found."
        )

    def one_search(self) -> str:
        """Ask for one call of one tool."""
        arguments = json.dumps({"pattern": PATTERN, "limit": 1})
        if self.is_scripted:
            return f"/tool search {arguments}"
        return f"Call the tool search once, with exactly {arguments}, and tell in one sentence what was found."


def model_of(environ: Mapping[str, str]) -> Model:
    """Choose the model: a real one if there is a key for it."""
    if not environ.get("OPENAI_API_KEY"):
        return Model(config="", is_scripted=True)
    name = environ.get("OPENAI_MODEL") or DEFAULT_MODEL
    lines = [
        "[providers.openai]",
        'kind = "openai"',
        'api_key = "env:OPENAI_API_KEY"',
        f"models = [{json.dumps(name)}]",
    ]
    if url := environ.get("OPENAI_BASE_URL"):
        lines.append(f"base_url = {json.dumps(url)}")
    lines += ["[models]", f"default = {json.dumps(f'openai/{name}')}"]
    return Model(config="\n".join(lines) + "\n", is_scripted=False)


def say(text: str) -> None:
    """Print a line of the story."""
    print(f"\n── {text}", flush=True)


class Teller:
    """Prints the updates of a run, one line each, and keeps its events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._line = ""

    def show(self, update: Update) -> None:
        """Print an update. The pieces of an answer are gathered on one line, cut at its width."""
        if isinstance(update, Delta) and update.WhichOneof("kind") == "text":
            before, self._line = self._line, (self._line or "     ~ ") + " ".join(update.text.splitlines())
            print(self._line[len(before) : WIDTH], end="", flush=True)
            return
        if self._line:
            print("…" if len(self._line) > WIDTH else "")
            self._line = ""
        if isinstance(update, Event):
            self.events.append(update)
            kind = update.WhichOneof("payload") or "?"
            print(f"{update.sequence:4} {kind.replace('_', ' '):16} {detail(update, kind)}"[:WIDTH], flush=True)
        elif isinstance(update, Discarded):
            print("     ! what was shown of this answer counts no more")
        elif update.WhichOneof("kind") == "tool_progress":
            print(f"     ~ {update.tool_progress.text}"[:WIDTH], flush=True)

    def payloads(self, kind: str) -> list[Any]:
        """Give the payloads of one kind, in order."""
        return [getattr(event, kind) for event in self.events if event.WhichOneof("payload") == kind]


def detail(event: Event, kind: str) -> str:
    """Say what matters of an event."""
    match kind:
        case "run_created":
            return f"{event.run_id} on session {event.session_id}"
        case "model_requested":
            return f"step {event.model_requested.step} of {event.model_requested.endpoint}"
        case "model_completed":
            usage = event.model_completed.usage
            return f"{usage.input_tokens} tokens in, {usage.output_tokens} out"
        case "tool_started":
            started = event.tool_started
            return f"{started.name} {started.arguments_json} (attempt {started.attempt})"
        case "tool_completed":
            return " ".join(text_of(event.tool_completed.result).split())
        case "tool_failed":
            return f"{event.tool_failed.reason} {event.tool_failed.message}"
        case "run_completed":
            return " ".join(event.run_completed.output.text.split())
        case _:
            return ""


async def watched(handle: RunHandle, at_progress: Callable[[], Awaitable[None]] | None = None) -> Teller:
    """Follow a run to its end and print it; do something once, when a tool first says that it is at work."""
    teller = Teller()
    async with aclosing(handle.updates()) as updates:
        async for update in updates:
            teller.show(update)
            if at_progress is not None and isinstance(update, Delta) and update.HasField("tool_progress"):
                action, at_progress = at_progress, None
                await action()
    await handle.result()
    return teller


async def check_log(client: Client, run_id: str, seen: list[Event]) -> None:
    """Check that what was seen is the log: every event, once, in order, to the byte."""
    logged = [event async for event in client.watch(run_id).events()]
    assert [event.sequence for event in seen] == list(range(1, len(logged) + 1)), "an event was lost or repeated"
    assert [event.SerializeToString() for event in seen] == [event.SerializeToString() for event in logged]


def files_below(directory: Path) -> int:
    """Count the files that the tool should count, in another way than it does."""
    found = 0
    for folder, below, names in os.walk(directory):
        below[:] = [name for name in below if name[0] != "."]
        paths = (Path(folder, name) for name in names if name[0] != ".")
        found += sum(1 for path in paths if path.is_file() and path.stat().st_size <= 4 << 20 and not path.is_symlink())
    return found


def check_hits(directory: Path, hits: list[dict[str, Any]]) -> None:
    """Check that each hit is in its file, on its line."""
    for hit in hits:
        lines = (directory / hit["file"]).read_bytes().decode(errors="replace").splitlines()
        assert lines[hit["line"] - 1].strip()[:300] == hit["text"], hit


async def register(client: Client, tools: ToolProcess) -> None:
    """Register the tool server: what its tools may do is the operator's word."""
    server = Server(
        name="files",
        address=tools.address,
        connection=ServerConnection.SERVER_CONNECTION_DIALLED,
        offers=[ServerOffer.SERVER_OFFER_TOOLS],
        tool_policies={"*": ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE)},
    )
    registered = await client.servers.register(server)
    assert registered.state == ServerState.SERVER_STATE_READY, registered
    assert sorted(registered.tool_names) == ["count", "search"], registered
    say(f"registered {registered.name} at {registered.address}: {', '.join(sorted(registered.tool_names))}, all pure")


async def first_run(client: Client, model: Model, directory: Path) -> None:
    """Stream a run that calls both tools, and check what they said against the files."""
    before = files_below(directory)
    say("a run that calls both tools, as it happens")
    handle = client.stream(model.both_tools())
    teller = await watched(handle)
    after = files_below(directory)
    results = {done.result.name: done.result for done in teller.payloads("tool_completed")}
    assert set(results) == {"count", "search"}, sorted(results)
    counted = int(text_of(results["count"]))
    assert min(before, after) <= counted <= max(before, after), (before, counted, after)
    hits = json.loads(text_of(results["search"]))
    assert len(hits) <= LIMIT
    check_hits(directory, hits)
    await check_log(client, handle.run_id, teller.events)
    say(f"checked: {counted} files are there, {len(hits)} hits stand in their files, the log holds what was shown")


async def second_run(client: Client, model: Model, daemon: DaemonProcess) -> None:
    """Follow a run over the death of its daemon, and check that nothing was lost or repeated."""
    say("a second run; its daemon is killed in the middle of the tool call")

    async def crash() -> None:
        code = await daemon.kill()
        say(f"behestd ended by SIGKILL ({code}); the watch stands at sequence {handle.sequence}")
        begun = time.monotonic()
        await daemon.start()
        say(f"behestd serves again at {daemon.address} after {time.monotonic() - begun:.1f} s; the same watch goes on")

    handle = client.stream(model.one_search())
    teller = await watched(handle, at_progress=crash)
    epochs = {event.epoch for event in teller.events}
    assert len(epochs) > 1, "the run went on in the same process"
    assert len(teller.payloads("tool_completed")) == 1
    await check_log(client, handle.run_id, teller.events)
    say(f"checked: {len(teller.events)} events, 1 to {handle.sequence}, none lost, none repeated")


async def demo(directory: Path) -> None:
    """Tell the story."""
    model = model_of(os.environ)
    with tempfile.TemporaryDirectory(prefix="behest-demo-") as home:
        async with (
            running(Path(home), config=model.config) as daemon,
            tool_server(directory, delay_seconds=CALL_SECONDS) as tools,
            Client(daemon.address) as client,
        ):
            say(f"behestd serves at {daemon.address}, SQLite in {home}; a tool server has the files of {directory}")
            await register(client, tools)
            await first_run(client, model, directory)
            await second_run(client, model, daemon)
            executed = await tools.stop()
            assert executed == ["count", "search", "search"], executed
            say("the tool server executed each call once: the call of the killed daemon was taken up, not repeated")


def main() -> None:
    """Read the command line, and tell the story."""
    parser = argparse.ArgumentParser(description="Show the main job, end to end.")
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT, help="whose files are looked into")
    asyncio.run(demo(parser.parse_args().directory.resolve(strict=True)))
    print("\ndemo: ok")


if __name__ == "__main__":
    main()
