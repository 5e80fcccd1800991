"""The command line as its users start it: a process, its two outputs and its exit code, against a scripted daemon."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict

from behest.cli.fields import fill
from behest.v1 import (
    agent_pb2,
    agent_service_pb2,
    artifact_service_pb2,
    daemon_service_pb2,
    model_service_pb2,
    registry_service_pb2,
    run_event_pb2,
    run_service_pb2,
    run_state_pb2,
    server_pb2,
    session_service_pb2,
    tool_call_service_pb2,
    tool_event_pb2,
    tool_pb2,
    tool_service_pb2,
)
from tests.sdk.daemon import (
    BEGIN,
    END_CANCELLED,
    END_FAILED,
    END_TIMED_OUT,
    RESET,
    RUN_ID,
    FakeDaemon,
    Plan,
    Script,
    end_completed,
    served,
    status,
    story,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

BEHEST = Path(sysconfig.get_path("scripts")) / "behest"


@dataclass(frozen=True)
class Outcome:
    """What a process left behind."""

    code: int
    stdout: str
    stderr: str

    def lines(self) -> list[dict[str, Any]]:
        """Return stdout as JSON lines."""
        return [json.loads(line) for line in self.stdout.splitlines()]


async def started(*arguments: str, port: int) -> asyncio.subprocess.Process:
    """Start `behest` against a port."""
    environment = {**os.environ, "BEHEST_ADDRESS": f"127.0.0.1:{port}"}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(BEHEST, *arguments, stdout=pipe, stderr=pipe, env=environment)


async def ended(process: asyncio.subprocess.Process) -> Outcome:
    """Wait for a process to end."""
    async with asyncio.timeout(20):
        stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return Outcome(process.returncode, stdout.decode(), stderr.decode())


async def behest(daemon: FakeDaemon, *arguments: str) -> Outcome:
    """Run `behest` against a daemon."""
    async with served(daemon) as port:
        return await ended(await started(*arguments, port=port))


def ending(end: dict[str, Any]) -> FakeDaemon:
    """Return a daemon whose run ends so at once."""
    return FakeDaemon(Script().events(*BEGIN).events(end).ticks)


async def test_a_run_prints_the_answers_on_stdout_and_the_rest_on_stderr() -> None:
    daemon = FakeDaemon(story(), [Plan(5, RESET), Plan(2, RESET)])
    outcome = await behest(daemon, "run", "say hello", "--label", "team=a", "--tool", "add", "--timeout", "2.5")
    assert (outcome.code, outcome.stdout) == (0, "Hello \nwor\nworld\n")
    assert "→ add {}" in outcome.stderr
    assert "! the answer was cut off and begins again" in outcome.stderr
    spec = daemon.requests[0].spec
    assert (spec.input[0].text.text, list(spec.tools), dict(spec.labels)) == ("say hello", ["add"], {"team": "a"})
    assert spec.timeout.ToMilliseconds() == 2500


async def test_child_runs_are_named_when_they_begin_and_when_they_end() -> None:
    def child(index: int, state: int = 0) -> list[dict[str, Any]]:
        names = {"child_run_id": f"run_child{index}", "call_id": f"call_{index}"}
        started = tool_event_pb2.ToolStarted(call_id=f"call_{index}", name="agent_helper", arguments_json="{}")
        return [
            {"tool_started": started},
            {"child_run_started": run_event_pb2.ChildRunStarted(**names)},
            {"child_run_ended": run_event_pb2.ChildRunEnded(state=state, **names)},  # type: ignore[arg-type]
        ]

    script = (
        Script().events(*BEGIN, *child(1, run_state_pb2.RUN_STATE_COMPLETED), *child(2)).events(end_completed("done"))
    )
    outcome = await behest(FakeDaemon(script.ticks), "run", "say hello")
    assert outcome.code == 0
    assert "⇒ agent_helper is run run_child1: behest watch run_child1" in outcome.stderr
    assert "⇐ run run_child1 completed" in outcome.stderr
    assert "⇐ run run_child2 not created" in outcome.stderr


async def test_a_run_as_json_is_a_line_for_each_event_delta_and_discarded_attempt() -> None:
    outcome = await behest(FakeDaemon(story()), "run", "say hello", "--output", "json")
    lines = outcome.lines()
    assert outcome.code == 0
    assert [int(line["event"]["sequence"]) for line in lines if "event" in line] == list(range(1, 13))
    assert [line["delta"]["text"] for line in lines if "text" in line.get("delta", {})][:2] == ["Hel", "lo "]
    assert [line["discarded"] for line in lines if "discarded" in line] == [{"step": 2, "attempt": 1}]
    assert outcome.stderr == ""


@pytest.mark.parametrize(
    ("end", "code", "word"),
    [
        (END_FAILED, 1, "RUN_STEP_LIMIT"),
        (END_CANCELLED, 3, "CANCELLED"),
        (END_TIMED_OUT, 3, "RUN_DEADLINE_EXCEEDED"),
    ],
    ids=["failed", "cancelled", "timed_out"],
)
async def test_the_exit_code_says_how_the_run_ended(end: dict[str, Any], code: int, word: str) -> None:
    outcome = await behest(ending(end), "run", "say hello")
    assert outcome.code == code
    assert word in outcome.stderr


@pytest.mark.parametrize("arguments", [["run", "hello"], ["runs", "list"], ["watch", "run_1"]], ids=lambda a: a[0])
async def test_a_daemon_that_is_not_there_is_exit_code_4(arguments: list[str]) -> None:
    process = await started(*arguments, "--address", "unix:/nonexistent/behestd.sock", "--output", "json", port=1)
    outcome = await ended(process)
    assert outcome.code == 4
    assert json.loads(outcome.stderr)["error"]["reason"] == "TRANSPORT_UNAVAILABLE"


async def test_wrong_usage_is_exit_code_2() -> None:
    assert (await ended(await started("run", port=1))).code == 2
    assert (await ended(await started("run", "--label", "nonsense", "hello", port=1))).code == 2
    assert (await ended(await started("runs", "list", "--state", "sleepy", port=1))).code == 2


async def test_an_error_of_the_daemon_is_exit_code_1_and_told_with_its_reason() -> None:
    daemon = FakeDaemon([], refusal=status(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND", runId="run_9"))
    outcome = await behest(daemon, "runs", "get", "run_9", "--output", "json")
    assert outcome.code == 1
    assert outcome.stdout == ""
    assert json.loads(outcome.stderr)["error"]["metadata"] == {"runId": "run_9"}


async def test_a_list_goes_over_all_pages_as_a_table_or_as_lines() -> None:
    table = await behest(FakeDaemon([]), "runs", "list")
    assert [row.split()[:2] for row in table.stdout.splitlines()[1:]] == [
        ["run_1", "completed"],
        ["run_2", "completed"],
        ["run_3", "completed"],
    ]
    lines = await behest(FakeDaemon([]), "runs", "list", "--limit", "2", "--output", "json")
    assert lines.lines() == [{"id": f"run_{n}", "state": "RUN_STATE_COMPLETED"} for n in (1, 2)]


async def test_a_run_that_is_not_watched_is_printed_as_one_document() -> None:
    daemon = FakeDaemon(story(), reached=1)
    outcome = await behest(daemon, "run", "say hello", "--no-watch", "--output", "json")
    assert outcome.code == 0
    assert json.loads(outcome.stdout)["session_id"] == "ses_1"
    assert daemon.calls == ["CreateRun", "GetRun"]


async def test_a_retry_forks_the_run_at_its_head_and_follows_the_new_one() -> None:
    daemon = FakeDaemon(story())
    outcome = await behest(daemon, "retry", "run_0")
    assert outcome.code == 0
    assert daemon.calls == ["ForkRun", "WatchRun"]
    fork = daemon.requests[0]
    assert (fork.source_run_id, fork.sequence, len(fork.spec.input)) == ("run_0", 0, 0)
    assert fork.request_id


class Cancellable(FakeDaemon):
    """Ends its run when it is cancelled, and keeps it silent until then."""

    cancelled: asyncio.Event

    async def follow(self, after, context):  # type: ignore[no-untyped-def]
        """Serve everything but the last tick, then wait for the cancel."""
        async for frame in self.frames(after):
            if frame.events and frame.events[-1].HasField("run_cancelled"):
                await self.cancelled.wait()
            yield frame

    async def CancelRun(
        self, request: run_service_pb2.CancelRunRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> run_service_pb2.CancelRunResponse:
        """Let the end come."""
        self.cancelled.set()
        return await super().CancelRun(request, context)


class Stubborn(Cancellable):
    """Promises to cancel its run, and takes its time."""

    async def CancelRun(
        self, request: run_service_pb2.CancelRunRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> run_service_pb2.CancelRunResponse:
        """Promise."""
        return await FakeDaemon.CancelRun(self, request, context)


async def first_line(process: asyncio.subprocess.Process) -> bytes:
    """Wait until a process says something beside its answers."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        return await process.stderr.readline()


async def test_ctrl_c_cancels_the_run_and_waits_for_its_end() -> None:
    daemon = Cancellable(Script().events(*BEGIN).events(END_CANCELLED).ticks)
    daemon.cancelled = asyncio.Event()
    async with served(daemon) as port:
        process = await started("run", "say hello", port=port)
        await first_line(process)
        process.send_signal(signal.SIGINT)
        outcome = await ended(process)
    assert outcome.code == 3
    assert daemon.calls == ["StreamRun", "CancelRun"]


async def test_a_second_ctrl_c_leaves_the_run_and_says_how_to_watch_it() -> None:
    daemon = Stubborn(Script().events(*BEGIN).events(END_CANCELLED).ticks)
    daemon.cancelled = asyncio.Event()
    async with served(daemon) as port:
        process = await started("run", "say hello", port=port)
        await first_line(process)
        process.send_signal(signal.SIGINT)
        assert b"cancelling" in await first_line(process)
        process.send_signal(signal.SIGINT)
        outcome = await ended(process)
    assert outcome.code == 130
    assert f"behest watch {RUN_ID} --after 3" in outcome.stderr


async def test_ctrl_c_leaves_a_run_that_is_only_watched() -> None:
    daemon = Stubborn(Script().events(*BEGIN).events(END_CANCELLED).ticks)
    daemon.cancelled = asyncio.Event()
    async with served(daemon) as port:
        process = await started("watch", RUN_ID, port=port)
        await first_line(process)
        process.send_signal(signal.SIGINT)
        outcome = await ended(process)
    assert outcome.code == 130
    assert daemon.calls == ["GetRun", "WatchRun"]


async def test_help_is_shown_without_loading_grpc() -> None:
    program = (
        "import sys; sys.argv = ['behest', '--help']; from behest.cli import main\ntry: main()\nexcept SystemExit: pass"
    )
    program += "\nassert 'grpc' not in sys.modules and 'google.protobuf' not in sys.modules"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    stdout, _ = await process.communicate()
    assert process.returncode == 0
    assert b"artifacts" in stdout


@pytest.mark.parametrize(
    "noun", ["runs", "sessions", "agents", "tools", "servers", "models", "artifacts", "run", "watch", "cancel", "retry"]
)
async def test_every_command_loads_and_explains_itself(noun: str) -> None:
    outcome = await ended(await started(noun, "--help", port=1))
    assert outcome.code == 0
    assert outcome.stderr == ""


def test_pairs_fill_lists_enums_maps_durations_and_nested_fields(tmp_path: Path) -> None:
    prompt, document = tmp_path / "prompt.txt", tmp_path / "agent.json"
    prompt.write_text("be brief")
    document.write_text('{"id": "helper", "tools": ["a"]}')
    agent = agent_pb2.Agent()
    pairs = {
        "instructions": f"@{prompt}",
        "tools": "add,files_*",
        "labels.team": "a",
        "limits": '{"max_steps": 3}',
        "sampling.temperature": "0.5",
        "sampling.reasoning_effort": "high",
        "hidden": "true",
    }
    names = fill(agent, str(document), pairs)
    assert (agent.id, agent.instructions, list(agent.tools)) == ("helper", "be brief", ["add", "files_*"])
    assert (agent.labels["team"], agent.limits.max_steps, agent.sampling.temperature) == ("a", 3, 0.5)
    assert agent.hidden
    assert names == ["id", "tools", "instructions", "labels", "limits", "sampling", "hidden"]

    server = server_pb2.Server()
    fill(server, None, {"tool_policies.add.side_effect": "pure", "offers": "tools,chat", "dedupe_retention": "60s"})
    assert server.tool_policies["add"].side_effect == tool_pb2.SIDE_EFFECT_PURE
    assert list(server.offers) == [server_pb2.SERVER_OFFER_TOOLS, server_pb2.SERVER_OFFER_CHAT]
    assert server.dedupe_retention.seconds == 60


class Recorder(grpc.GenericRpcHandler):
    """Answers every unary method with an empty message, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Serve any method."""
        method = handler_call_details.method.split("/")[-1]

        async def answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            self.asked.append((method, request))
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.parametrize(
    ("command", "request_type", "expected"),
    [
        ("cancel run_1 --force", run_service_pb2.CancelRunRequest, {"run_id": "run_1", "mode": "CANCEL_MODE_FORCE"}),
        ("runs delete run_1", run_service_pb2.DeleteRunRequest, {"run_id": "run_1"}),
        ("runs explain run_1", run_service_pb2.ExplainRunRequest, {"run_id": "run_1"}),
        ("sessions list", session_service_pb2.ListSessionsRequest, {"page_size": 50}),
        ("sessions messages s", session_service_pb2.ListMessagesRequest, {"session_id": "s"}),
        ("sessions delete s", session_service_pb2.DeleteSessionRequest, {"session_id": "s"}),
        ("agents get helper --version 2", agent_service_pb2.GetAgentRequest, {"agent_id": "helper", "version": "2"}),
        (
            "agents update helper model=scripted/echo",
            agent_service_pb2.UpdateAgentRequest,
            {"agent": {"id": "helper", "model": "scripted/echo"}, "update_mask": "model"},
        ),
        ("tools list --server srv_1", tool_service_pb2.ListToolsRequest, {"server_id": "srv_1"}),
        (
            "tools resolve call_1 --executed yes --result done",
            tool_call_service_pb2.ResolveToolCallRequest,
            {"call_id": "call_1", "executed": "EXECUTED_YES", "result": {"parts": [{"text": {"text": "done"}}]}},
        ),
        ("servers unregister srv_1", registry_service_pb2.UnregisterServerRequest, {"server_id": "srv_1"}),
        (
            "servers register calc 127.0.0.1:5000 tool_policies.add.side_effect=pure",
            registry_service_pb2.RegisterServerRequest,
            {
                "server": {
                    "name": "calc",
                    "address": "127.0.0.1:5000",
                    "connection": "SERVER_CONNECTION_DIALLED",
                    "offers": ["SERVER_OFFER_TOOLS"],
                    "tool_policies": {"add": {"side_effect": "SIDE_EFFECT_PURE"}},
                }
            },
        ),
        ("models list --provider scripted", model_service_pb2.ListModelsRequest, {"provider_id": "scripted"}),
        ("artifacts delete art_1", artifact_service_pb2.DeleteArtifactRequest, {"artifact_id": "art_1"}),
        ("status", daemon_service_pb2.GetStatusRequest, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_command_asks_for_what_its_arguments_say(
    command: str, request_type: type[Message], expected: dict[str, Any]
) -> None:
    recorder = Recorder()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((recorder,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        outcomes = [await ended(await started(*command.split(), "--output", f, port=port)) for f in ("text", "json")]
    finally:
        await server.stop(None)
    assert [(outcome.code, outcome.stderr) for outcome in outcomes] == [(0, ""), (0, "")]
    for method, request in (recorder.asked[-1], recorder.asked[len(recorder.asked) // 2 - 1]):
        assert method == request_type.DESCRIPTOR.name.removesuffix("Request")
        assert MessageToDict(request_type.FromString(request), preserving_proto_field_name=True) == expected
