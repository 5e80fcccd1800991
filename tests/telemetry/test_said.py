"""What the daemon says of its work: ids on each line, nobody's words, one line a line, whatever clients send."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from behest.errors import BehestError
from behest.v1.run_service_pb2 import CreateRunRequest
from behest.v1.run_spec_pb2 import RunSpec
from behestd.components import TELEMETRY
from behestd.service.scopes import RULES
from behestd.telemetry import about
from behestd.telemetry.logs import QUEUE_LINES, Logs
from behestd.telemetry.settings import Settings
from tests.daemons import serve
from tests.providers.conformance import user
from tests.runs.scenes import OPEN, PURE, tools
from tests.telemetry.collector import collecting
from tests.telemetry.scrape import address_of, scrape

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HOSTILE = "one\ntwo\r\x1b[31mred\x07\u2028\u202eevil %s %(name)s {0} {run.__class__}"
SECONDS = 30.0


@dataclass
class Said:
    """The log of a test: its lines as they came, once it is closed."""

    logs: Logs
    data: bytearray = field(default_factory=bytearray)

    @property
    def lines(self) -> list[str]:
        """Its lines, split at nothing but line feeds."""
        return self.data.decode().split("\n")[:-1]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its lines, read."""
        return [json.loads(line) for line in self.lines]


@contextmanager
def saying(level: str = "debug") -> Iterator[Said]:
    """Log into a pipe, and read it."""
    reader, writer = os.pipe()
    said = Said(Logs(format="json", level=level, descriptor=writer))

    def read() -> None:
        while data := os.read(reader, 65536):
            said.data += data

    thread = threading.Thread(target=read)
    thread.start()
    try:
        with said.logs:
            yield said
    finally:
        os.close(writer)
        thread.join(SECONDS)
        os.close(reader)


def break_down(reason: str) -> str:
    """Break down."""
    raise ValueError("broken")


async def test_each_line_about_a_run_names_it_and_its_session_and_its_trace() -> None:
    with saying() as said:
        async with serve(tools=tools((break_down, PURE)), operator=OPEN) as served:
            request = CreateRunRequest(spec=RunSpec(input=user('/tool break_down {"reason": "a"} /next /say ok').parts))
            made = await served.client.stubs.runs.CreateRun(request, metadata=(("traceparent", PARENT),))
            await served.client.watch(made.run.id).result()
            other = await served.client.run('/tool break_down {"reason": "b"} /next /say ok')
            await other.result()
    first, second = [line for line in said.events if line["event"] == "function tool raised"]
    assert first["run_id"] == made.run.id
    assert first["session_id"] == made.run.session_id
    assert first["trace_id"] == PARENT[3:35]
    # A run without a trace has none, and none of another run.
    assert second["run_id"] == other.run_id
    assert "trace_id" not in second
    assert not any("run_id" in line for line in said.events if line["event"] == "drained")


def test_a_line_about_another_run_is_not_given_the_ids_of_this_one() -> None:
    with saying() as said:
        about.say("run-1", "session-1", "trace-1")
        logger = structlog.get_logger("room")
        logger.info("of this one")
        logger.info("of another", run_id="run-2")
        logger.info("of this one too", run_id="run-1")
        about.say("", "", "")
        logger.info("of none")
    ids = [(line.get("run_id"), line.get("session_id"), line.get("trace_id")) for line in said.events]
    this = ("run-1", "session-1", "trace-1")
    assert ids == [this, ("run-2", None, None), this, (None, None, None)]


async def test_a_reload_changes_the_level_of_the_log() -> None:
    with saying("info") as said:
        async with serve(logs=said.logs) as served:
            telemetry = served.daemon.lifecycle[TELEMETRY]
            plan = served.daemon.plan
            for level in ("info", "debug", "error"):
                swap = telemetry.prepare(_leveled(plan, level))
                swap()
                structlog.get_logger("room").debug("fine", at=level)
                structlog.get_logger("room").error("loud", at=level)
    seen = [(line["event"], line["at"]) for line in said.events if "at" in line]
    assert seen == [("loud", "info"), ("fine", "debug"), ("loud", "debug"), ("loud", "error")]


def _leveled(plan: Any, level: str) -> Any:
    @dataclass(frozen=True)
    class Planned:
        telemetry: Settings

    return Planned(Settings(level=level))


async def test_no_word_of_anybody_is_in_logs_metrics_or_spans(tmp_path: Path) -> None:  # S9
    words = {
        name: f"canary-{name}-{secrets.token_hex(8)}" for name in ("prompt", "argument", "result", "answer", "why")
    }

    def look_up(key: str) -> str:
        """Look a thing up."""
        if key == words["argument"] + "!":
            raise ValueError(words["why"])
        return words["result"]

    async with collecting() as collector:
        settings = Settings(prometheus="127.0.0.1:0", otlp=collector.address)
        with saying() as said:
            plan = {"telemetry": settings, "tools": tools((look_up, PURE)), "operator": OPEN, "logs": said.logs}
            async with serve("sqlite", tmp_path / "data", **plan) as served:
                client = served.client
                for argument in (words["argument"], words["argument"] + "!"):
                    called = f'/tool look_up {{"key": "{argument}"}} /next /say {words["answer"]}'
                    await (await client.run(f"{words['prompt']}\n{called}")).result()
                for order in ("/fail UNAVAILABLE 1 0", "/garbage look_up /next /say ok", "/fail REQUEST_INVALID"):
                    run = await client.run(f"{words['prompt']}\n{order}")
                    try:
                        await run.result()
                    except BehestError as error:
                        assert error.reason.startswith("PROVIDER_")
                    await run.cancel(reason=words["why"])
                read = await scrape(address_of(served), is_open=True)
    told = [said.data, read.text.encode(), *collector.raw]
    assert len(collector.spans) > 10
    assert len(collector.raw) > 1
    for name, word in words.items():
        assert not [data for data in told if word.encode() in data], name


async def test_no_string_of_a_client_makes_a_line() -> None:  # S17
    mark = secrets.token_hex(8)
    methods = [
        name for name in RULES if name.startswith("/behest.v1.") and "Drain" not in name and "Reload" not in name
    ]
    with saying() as said:
        async with serve(logs=said.logs, operator=OPEN) as served:
            for name in methods:
                described = descriptor_pool.Default().FindMethodByName(name[1:].replace("/", "."))
                request = filled(described.input_type, f"{mark}{HOSTILE}").SerializeToString()
                metadata = (("traceparent", f"{mark}-x"), ("x-note", mark))
                await asked(served.channel, name, described, request, metadata)
    assert len(methods) > 60
    for line in said.lines:
        assert line.isprintable(), ascii(line)
        assert json.loads(line)["level"] != "error", line
    assert not any("one\ntwo" in line for line in said.lines)


async def asked(
    channel: grpc.aio.Channel, name: str, described: Any, request: bytes, metadata: tuple[tuple[str, str], ...]
) -> None:
    """Call a method, and leave it when it has not ended in a moment."""
    kind = ("stream" if described.client_streaming else "unary", "stream" if described.server_streaming else "unary")
    made = getattr(channel, "_".join(kind))(name)
    call = made(iter([request]) if kind[0] == "stream" else request, metadata=metadata, timeout=0.3)
    try:
        if kind[1] == "stream":
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError:
        return


def filled(described: Descriptor, text: str, depth: int = 0) -> Message:
    """A message whose every string is a text, as deep as it makes sense."""
    made: Any = message_factory.GetMessageClass(described)()
    for each in described.fields:
        if each.type == FieldDescriptor.TYPE_STRING:
            if each.is_repeated:
                getattr(made, each.name).append(text)
            else:
                setattr(made, each.name, text)
        elif each.message_type is not None and depth < 4 and not each.message_type.GetOptions().map_entry:
            inner = filled(each.message_type, text, depth + 1)
            if each.is_repeated:
                getattr(made, each.name).append(inner)
            elif each.message_type.full_name.startswith("behest."):
                getattr(made, each.name).CopyFrom(inner)
    return made


async def test_nobody_reading_the_log_costs_runs_nothing_but_lines() -> None:  # matrix row 75
    reader, writer = os.pipe()
    logs = Logs(format="json", level="debug", descriptor=writer)
    with logs:
        async with serve(logs=logs, telemetry=Settings(prometheus="127.0.0.1:0")) as served:
            for number in range(QUEUE_LINES + 5_000):
                structlog.get_logger("room").info("line", number=number, text="x" * 100)
            async with asyncio.timeout(SECONDS):
                assert (await (await served.client.run("hello")).result()).text == "hello"
            read = await scrape(address_of(served))
            assert read.value("behest_log_lines_dropped_total") == logs.statistics().dropped > 0
        # Lets the writing thread go.
        drained = threading.Thread(target=_drain, args=(reader,), daemon=True)
        drained.start()
    os.close(writer)
    drained.join(SECONDS)
    os.close(reader)


def _drain(reader: int) -> None:
    while os.read(reader, 65536):
        pass


@pytest.mark.parametrize("field", ["run_id", "session_id", "trace_id"])
def test_what_a_line_says_itself_stands(field: str) -> None:
    fields: dict[str, Any] = {field: "mine"}
    about.say("run-1", "session-1", "trace-1")
    about.add(fields)
    about.say("", "", "")
    assert fields == {field: "mine"}
