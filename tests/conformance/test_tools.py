"""The examination of tool servers finds every fault that a server can be given, and none in a server without."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from behest.conformance.tools import CHECKS, Plan, examine
from behest.conformance.verdict import Finding, Verdict, passes
from behest.tools import Context, ToolError, ToolServer
from tests.conformance.broken_server import serving

pytestmark = pytest.mark.timeout(180)

BEHEST = Path(sysconfig.get_path("scripts")) / "behest"
TOKEN = "conformance-token"
LARGE = ("large", '{"bytes": 5242880}')
SHORT = ("work", '{"seconds": 0.7}')
LASTING = ("work", '{"seconds": 300}')
QUICK = (("count", "{}"), ("fail", '{"why": "of course"}'))
EVERY = (*QUICK, LARGE, SHORT, LASTING)
# Which of the calls that take time a check needs.
NEEDED = {
    "call.progress": SHORT,
    "call.chunks": LARGE,
    "status.large": LARGE,
    "key.at_once": SHORT,
    "key.disconnect": SHORT,
    "status.wait": SHORT,
    "call.beside": LASTING,
    "key.deadline": SHORT,
    "status.running": LASTING,
    "cancel.*": LASTING,
}
FAULTS = {
    "list-fails": "list.answers",
    "name-illegal": "list.names",
    "name-twice": "list.names",
    "order-lost": "list.order",
    "page-size-ignored": "list.pages",
    "page-drops-one": "list.pages",
    "pages-without-end": "list.pages",
    "negative-page-taken": "list.pages",
    "glob-ignored": "list.glob",
    "get-differs": "list.get",
    "description-missing": "list.texts",
    "description-huge": "list.texts",
    "list-changes": "list.stable",
    "schema-no-json": "schema.valid",
    "schema-no-object": "schema.valid",
    "schema-nonsense": "schema.valid",
    "schema-elsewhere": "schema.valid",
    "output-schema-nonsense": "schema.valid",
    "hash-wrong": "schema.hash",
    "stricter-than-told": "schema.honest",
    "no-result": "call.results",
    "two-results": "call.results",
    "frame-after-result": "call.results",
    "bad-utf8": "call.results",
    "call-id-wrong": "call.identity",
    "tool-name-wrong": "call.identity",
    "json-part-broken": "call.parts",
    "part-empty": "call.parts",
    "artifact-named": "call.parts",
    "output-breaks-schema": "call.output_schema",
    "failure-without-word": "call.failures",
    "empty-arguments-refused": "call.empty_arguments",
    "unicode-mangled": "call.unicode",
    "progress-backwards": "call.progress",
    "progress-huge": "call.progress",
    "progress-beyond-total": "call.progress",
    "chunk-huge": "call.chunks",
    "chunks-beside-content": "call.chunks",
    "chunks-no-text": "call.chunks",
    "frame-huge": "call.chunks",
    "results-swapped": "call.at_once",
    "one-at-a-time": "call.beside",
    "keyless-shared": "call.keyless",
    "refusals-internal": "error.unknown_tool",
    "refusals-untyped": "error.unknown_tool",
    "details-differ": "error.unknown_tool",
    "refusals-unproved": "error.unknown_tool",
    "arguments-unchecked": "error.arguments",
    "json-unchecked": "error.no_json",
    "nesting-breaks": "error.nesting",
    "oversize-hangs": "error.oversize",
    "hash-ignored": "error.changed",
    "start-by-ignored": "error.expired",
    "expired-unproved": "error.expired",
    "proof-always": "error.proof",
    "token-ignored": "error.token",
    "forgets": "key.repeat",
    "attempt-is-new": "key.attempt",
    "joins-nobody": "key.at_once",
    "key-with-arguments": "key.arguments",
    "epoch-ignored": "key.epoch",
    "epoch-is-new": "key.epoch",
    "leaves-with-stream": "key.disconnect",
    "deadline-stops-work": "key.deadline",
    "deadline-proves": "key.deadline",
    "status-without-result": "status.done",
    "status-differs": "status.done",
    "status-running-for-ever": "status.done",
    "status-huge": "status.large",
    "status-cut-silently": "status.large",
    "status-running-unknown": "status.running",
    "status-wait-ignored": "status.wait",
    "tombstone-missing": "status.tombstone",
    "tombstone-unproved": "status.tombstone",
    "tombstone-for-ever": "status.tombstone_later",
    "tombstone-of-epoch": "status.tombstone_later",
    "cancel-ignored": "cancel.stops",
    "cancel-unacknowledged": "cancel.stops",
    "cancel-always-acknowledged": "cancel.repeats",
    "cancel-any-epoch": "cancel.epoch",
    "cancel-all": "cancel.one",
    "cancelled-remembered": "cancel.again",
}


def failed(found: list[Finding]) -> list[Finding]:
    """Return what did not pass."""
    return [finding for finding in found if finding.verdict is not Verdict.PASS]


def calls_for(check: str) -> Iterator[tuple[str, str]]:
    """Yield the calls that a check needs to be made."""
    yield from QUICK
    yield from (call for glob, call in NEEDED.items() if fnmatchcase(check, glob))


@pytest.mark.parametrize(("fault", "check"), FAULTS.items())
async def test_the_examination_finds_a_seeded_fault(fault: str, check: str) -> None:  # N14
    async with serving(fault, token=TOKEN) as address:
        tools = ("count", "echo", "fail")
        plan = Plan(address, calls=tuple(calls_for(check)), tools=tools, only=(check,), token=TOKEN, seconds=6.0)
        (finding,) = await examine(plan)
    assert finding.verdict is Verdict.FAIL, finding


async def test_a_server_that_keeps_the_contract_passes_every_check() -> None:  # N14
    async with serving(token=TOKEN) as address:
        found = await examine(Plan(address, calls=EVERY, token=TOKEN, seconds=20.0))
    assert failed(found) == []
    assert [finding.check for finding in found] == list(CHECKS)


def test_every_check_but_the_last_finds_a_fault() -> None:
    assert set(CHECKS) - set(FAULTS.values()) == {"alive"}


def sdk_server(dedupe: str) -> ToolServer:
    """A server of the SDK with a tool for every check."""
    server = ToolServer(dedupe=dedupe, token=TOKEN)
    counted = iter(range(1, 1_000_000))

    @server.tool
    def count() -> dict[str, int]:
        """Count on."""
        return {"n": next(counted)}

    @server.tool
    def echo(text: str, times: int = 1) -> str:
        """Repeat a text."""
        return text * times

    @server.tool
    def fail(why: str) -> str:
        """Fail."""
        raise ToolError(why)

    @server.tool
    def large(bytes: int) -> str:
        """Be large."""
        return "ä" * (bytes // 2)

    @server.tool
    async def work(context: Context, seconds: float) -> str:
        """Take time."""
        for step in range(5):
            context.progress(f"step {step}", current=step, total=4)
            await asyncio.sleep(seconds / 5)
        return f"worked {next(counted)}"

    return server


@pytest.mark.parametrize("memory", ["file", "process"])
async def test_the_servers_of_the_sdk_pass(memory: str, tmp_path: Path) -> None:  # N14
    async with sdk_server(str(tmp_path / "calls.sqlite3") if memory == "file" else "") as server:
        port = await server.serve("127.0.0.1:0")
        found = await examine(Plan(f"127.0.0.1:{port}", calls=EVERY, token=TOKEN, seconds=20.0))
    cannot = {"call.output_schema"} | ({"status.tombstone", "status.tombstone_later"} if memory == "process" else set())
    assert [finding for finding in failed(found) if finding.check not in cannot] == []
    assert {finding.verdict for finding in found if finding.check in cannot} == {Verdict.SKIP}


async def command(*arguments: str) -> tuple[int, str, str]:
    """Run `behest conformance tools`; gives exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        str(BEHEST),
        *("conformance", "tools", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "CONFORMANCE_TOKEN": TOKEN},
    )
    async with asyncio.timeout(120):
        stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stdout.decode(), stderr.decode()


async def test_the_command_prints_a_table_and_fails_when_a_check_does() -> None:
    async with serving("name-illegal", token=TOKEN) as address:
        code, table, _ = await command(address, "--only", "list.*", "--token-env", "CONFORMANCE_TOKEN")
        rows = {line.split()[0]: line.split()[1] for line in table.splitlines()[:-1]}
        assert (code, rows["list.names"], rows["list.order"]) == (1, "fail", "pass")
        code, lines, _ = await command(address, "--only", "list.order", "--token-env", "CONFORMANCE_TOKEN", "--json")
    assert code == 0
    assert json.loads(lines) == {"check": "list.order", "verdict": "pass", "seen": "by name"}


async def test_the_command_says_what_is_wrong_with_its_own_arguments() -> None:
    for wrong in (["--only", "no-such-check"], ["--call", "count"], ["--token-env", "NO_SUCH_VARIABLE_IS_SET"]):
        code, _, text = await command("127.0.0.1:1", *wrong)
        assert (code, wrong[0] in text) == (2, True), text


def test_the_command_names_the_extra_that_it_needs() -> None:
    program = "import sys; sys.modules['jsonschema_rs'] = None; from behest.cli import main; main()"
    command = [sys.executable, "-c", program, "conformance", "tools", "127.0.0.1:1"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=50, check=False)
    assert (done.returncode, "behest[conformance]" in done.stderr) == (1, True), done.stderr


async def test_a_server_that_is_not_there_fails_one_check_and_skips_the_rest() -> None:
    code, lines, _ = await command("127.0.0.1:1", "--json", "--patience", "2")
    verdicts = [json.loads(line)["verdict"] for line in lines.splitlines()]
    assert (code, verdicts.count("fail"), verdicts.count("pass")) == (1, 1, 0)


def test_strict_counts_what_was_skipped() -> None:
    found = [Finding("a", Verdict.PASS, ""), Finding("b", Verdict.SKIP, "")]
    assert (passes(found), passes(found, is_strict=True)) == (True, False)
