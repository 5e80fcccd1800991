"""The examination of provider servers finds every fault that one can be given, and none in a server without."""

from __future__ import annotations

import asyncio
import json
import os
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from behest.conformance.models import CHECKS, Plan, examine
from behest.conformance.models_survey import Prompts
from behest.conformance.verdict import Finding, Verdict
from behest.model_server import Chat, ModelContext, Piece, ProviderServer, ToolCall, last_text
from behest.v1.chat_pb2 import ToolChoiceMode
from tests.conformance.broken_models import FOR_EVER, serving
from tests.daemons import serve

pytestmark = pytest.mark.timeout(180)

BEHEST = Path(sysconfig.get_path("scripts")) / "behest"
TOKEN = "conformance-token"
PROMPTS = Prompts("echo {mark}", "now look_up", FOR_EVER)
FAULTS = {
    "list-empty": "list.answers",
    "name-illegal": "list.names",
    "name-twice": "list.names",
    "order-lost": "list.order",
    "page-size-ignored": "list.pages",
    "pages-without-end": "list.pages",
    "negative-page-taken": "list.pages",
    "filter-ignored": "list.capabilities",
    "able-to-nothing": "list.capabilities",
    "figure-negative": "list.figures",
    "price-negative": "list.figures",
    "get-differs": "list.get",
    "list-changes": "list.stable",
    "fails-always": "chat.answers",
    "bad-utf8": "chat.answers",
    "end-missing": "chat.answers",
    "end-twice": "chat.ends",
    "frame-after-end": "chat.ends",
    "end-differs": "chat.adds_up",
    "pieces-missing": "chat.adds_up",
    "kind-changes": "chat.adds_up",
    "piece-of-no-kind": "chat.pieces",
    "part-far-away": "chat.pieces",
    "call-unnamed-piece": "chat.pieces",
    "role-wrong": "chat.message",
    "part-of-wrong-kind": "chat.message",
    "finish-missing": "chat.finish",
    "finish-of-calls": "chat.finish",
    "usage-missing": "chat.usage",
    "usage-empty": "chat.usage",
    "usage-negative": "chat.usage",
    "source-missing": "chat.usage",
    "frame-huge": "chat.frames",
    "complete-differs": "chat.complete",
    "unicode-mangled": "chat.unicode",
    "history-refused": "chat.history",
    "answers-mixed": "chat.at_once",
    "one-at-a-time": "chat.beside",
    "call-of-no-tool": "tools.calls",
    "call-ids-repeat": "tools.calls",
    "arguments-empty": "tools.arguments",
    "arguments-no-object": "tools.arguments",
    "choice-ignored": "tools.choice",
    "vector-missing": "embed.count",
    "vector-shorter": "embed.lengths",
    "vector-no-number": "embed.lengths",
    "dimensions-lie": "embed.lengths",
    "vectors-swapped": "embed.order",
    "dimensions-ignored": "embed.dimensions",
    "embed-usage-missing": "embed.usage",
    "unknown-fails": "error.unknown_model",
    "refusals-internal": "error.unknown_model",
    "refusals-untyped": "error.unknown_model",
    "empty-taken": "error.invalid",
    "empty-texts-taken": "error.embeddings",
    "capability-ignored": "error.capability",
    "token-ignored": "error.token",
    "timeout-ignored": "stop.timeout",
    "timeout-untyped": "stop.timeout",
    "slots-leak": "stop.cancel",
    "oversize-breaks": "error.oversize",
}


def failed(found: list[Finding]) -> list[Finding]:
    """Return what did not pass."""
    return [finding for finding in found if finding.verdict is not Verdict.PASS]


@pytest.mark.parametrize(("fault", "check"), FAULTS.items())
async def test_the_examination_finds_a_seeded_fault(fault: str, check: str) -> None:  # N14
    async with serving(fault, token=TOKEN) as address:
        (finding,) = await examine(Plan(address, prompts=PROMPTS, only=(check,), token=TOKEN, seconds=3.0))
    assert finding.verdict is Verdict.FAIL, finding


async def test_the_deadline_of_a_call_that_frees_nothing_is_found() -> None:  # N14
    async with serving("slots-leak") as address:
        (finding,) = await examine(Plan(address, prompts=PROMPTS, only=("stop.deadline",), seconds=6.0))
    assert finding.verdict is Verdict.FAIL, finding


async def test_a_server_that_keeps_the_contract_passes_every_check() -> None:  # N14
    async with serving(token=TOKEN) as address:
        found = await examine(Plan(address, prompts=PROMPTS, token=TOKEN, seconds=20.0))
    assert failed(found) == []
    assert [finding.check for finding in found] == list(CHECKS)


def test_every_check_but_the_last_finds_a_fault() -> None:
    assert set(CHECKS) - set(FAULTS.values()) == {"alive", "stop.deadline"}


def sdk_server() -> ProviderServer:
    """A server of the SDK with what every check needs."""
    server = ProviderServer(token=TOKEN)

    @server.chat_model(capabilities=["tools"])
    async def echo(chat: Chat) -> AsyncIterator[Piece]:
        said = last_text(chat)
        while said == FOR_EVER:
            yield "again "
            await asyncio.sleep(0.05)
        yield said
        if said == PROMPTS.calls and chat.tool_choice.mode != ToolChoiceMode.TOOL_CHOICE_MODE_NONE:
            yield ToolCall("now")
            yield ToolCall("look_up", {"id": 7})

    @server.chat_model
    async def plain(chat: Chat) -> str:
        return "yes"

    @server.embedding_model(dimensions=4)
    async def vectors(texts: list[str], context: ModelContext) -> list[list[float]]:
        length = context.request.dimensions or 4  # type: ignore[union-attr]
        return [[float(sum(text.encode()) % (7 + index)) + 0.5 for index in range(length)] for text in texts]

    return server


async def test_the_server_of_the_sdk_passes() -> None:  # N14
    async with sdk_server() as server:
        port = await server.serve("127.0.0.1:0")
        found = await examine(Plan(f"127.0.0.1:{port}", prompts=PROMPTS, token=TOKEN, seconds=20.0))
    assert failed(found) == []


async def test_the_daemon_itself_passes() -> None:  # N14, N05
    prompts = Prompts("/say {mark}", '/tool now /tool look_up {"id": 7}', "/say a /stall")
    async with serve() as served:
        found = await examine(Plan(served.daemon.addresses[0], model="scripted/echo", prompts=prompts, seconds=20.0))
    # A script says what it says, whatever it may.
    assert {finding.check for finding in failed(found)} <= {"error.token", "tools.choice"}


async def command(*arguments: str) -> tuple[int, str, str]:
    """Run `behest conformance models`; gives exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        str(BEHEST),
        *("conformance", "models", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "CONFORMANCE_TOKEN": TOKEN},
    )
    async with asyncio.timeout(120):
        stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stdout.decode(), stderr.decode()


async def test_the_command_prints_a_table_and_fails_when_a_check_does() -> None:
    async with serving("order-lost", token=TOKEN) as address:
        prompts = ("--text", PROMPTS.text, "--calls", PROMPTS.calls, "--long", PROMPTS.long)
        code, table, _ = await command(address, "--only", "list.*", "--token-env", "CONFORMANCE_TOKEN", *prompts)
        rows = {line.split()[0]: line.split()[1] for line in table.splitlines()[:-1]}
        assert (code, rows["list.order"], rows["list.names"]) == (1, "fail", "pass")
        code, lines, _ = await command(
            address, "--only", "chat.ends", "--model", "echo", "--token-env", "CONFORMANCE_TOKEN", "--json", *prompts
        )
    assert code == 0
    assert json.loads(lines) == {"check": "chat.ends", "verdict": "pass", "seen": "one, in the last frame"}


async def test_the_command_says_what_is_wrong_with_its_own_arguments() -> None:
    for wrong in (["--only", "no-such-check"], ["--token-env", "NO_SUCH_VARIABLE_IS_SET"]):
        code, _, text = await command("127.0.0.1:1", *wrong)
        assert (code, wrong[0] in text) == (2, True), text


async def test_a_server_that_is_not_there_fails_one_check_and_skips_the_rest() -> None:
    code, lines, _ = await command("127.0.0.1:1", "--json", "--patience", "2")
    verdicts = [json.loads(line)["verdict"] for line in lines.splitlines()]
    assert (code, verdicts.count("fail"), verdicts.count("pass")) == (1, 1, 0)
