"""Tool servers of the Go and the TypeScript client pass the examination, with a file that remembers and without one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from behest.conformance.tools import Plan, examine
from behest.conformance.verdict import Finding, Verdict
from tests.interop.go import golang
from tests.interop.typescript import node

pytestmark = pytest.mark.timeout(golang.BUILD_SECONDS + 120)

SERVERS = Path(__file__).resolve().parent / "servers"
TOKEN = "conformance-token"
CALLS = (
    ("count", "{}"),
    ("fail", '{"why": "of course"}'),
    ("large", '{"bytes": 5242880}'),
    ("work", '{"seconds": 0.7}'),
    ("work", '{"seconds": 300}'),
)
WITHOUT_FILE = {"status.tombstone", "status.tombstone_later"}


async def examined(address: str) -> list[Finding]:
    """Make all checks of a server, and return what did not pass."""
    found = await examine(Plan(address, calls=CALLS, token=TOKEN, seconds=20.0))
    return [finding for finding in found if finding.verdict is not Verdict.PASS]


@pytest.fixture(params=["file", "process"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a server remembers: a file, or nowhere but in its process."""
    return str(tmp_path / "calls") if request.param == "file" else ""


async def test_a_go_server_passes(store: str) -> None:  # N14
    async with golang.program(str(SERVERS / "tools.go"), "127.0.0.1:0", store, TOKEN) as server:
        line = await server.expect("tool server ready")
        found = await examined(re.findall(r"127\.0\.0\.1:\d+", line)[0])
    # An output schema is what a Go tool does not declare.
    assert [each for each in found if each.check not in {"call.output_schema", *([] if store else WITHOUT_FILE)}] == []


async def test_a_typescript_server_passes(store: str) -> None:  # N14
    node.node()
    node.compiled(SERVERS)
    async with node.running(node.BUILT / "conformance" / "tools.mjs", "127.0.0.1:0", store, TOKEN) as server:
        found = await examined(f"127.0.0.1:{await server.expect('ready')}")
    assert [each for each in found if each.check not in ([] if store else WITHOUT_FILE)] == []
