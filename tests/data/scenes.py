"""What tests of data care share: a session with some of everything, and a search through the raw files of a daemon."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from behest.v1.agent_pb2 import Agent
from behest.v1.run_state_pb2 import RunState
from behest.v1.session_pb2 import Session
from behestd.core.definition import Operator
from behestd.log.sqlite_schema import FILE_NAME
from behestd.tools.catalog import Catalog
from behestd.tools.schema import Validators
from tests.approvals.scenes import CAREFUL
from tests.daemons import Served
from tests.runs.scenes import NON_IDEMPOTENT, PURE, events_of, finished, put_agent, tools, until_kind

BOSS = Agent(id="boss", sub_agents=["helper"], tools=["*"])
HELPER = Agent(id="helper", description="Helps.")


AUDITED = ("request-id", "run-request", "file-name", "key")
"""Ids and names that clients chose: the audit says what they did with what, and is kept as long as it should be."""


@dataclass
class Canaries:
    """Texts that are found nowhere else. `text` makes one for a place."""

    seed: str
    planted: list[str] = field(default_factory=list)

    def text(self, place: str) -> str:
        """A canary for a place."""
        self.planted.append(f"canary-{self.seed}-{place}")
        return self.planted[-1]


def with_tools(canaries: Canaries) -> tuple[Callable[[Validators], Catalog], Operator]:
    """Tools whose results hold canaries, one of which asks first."""
    result, noisy = canaries.text("result"), canaries.text("large-result")

    def look(what: str) -> str:
        """Look at something."""
        return f"{what} is {result}"

    def flood(lines: int) -> str:
        """Say more than the model is shown, so that the whole is kept as an artifact."""
        return f"{noisy} and more\n" * lines

    def pay(note: str) -> str:
        """Pay, which needs an approval."""
        return f"paid {note}"

    return tools((look, PURE), (flood, PURE), (pay, NON_IDEMPOTENT)), CAREFUL


async def fill(served: Served, canaries: Canaries, *, session_id: str = "ses-full", prefix: str = "run") -> str:
    """Make a session with runs, tool calls, an approval, a child run, artifacts, scratch data; gives its id."""
    client, text = served.client, canaries.text
    metadata = json.dumps({"note": text("metadata")})
    labels = {"label": text("label")}
    session = Session(id=session_id, title=text("title"), metadata_json=metadata, labels=labels)
    await client.sessions.create(session, request_id=text("request-id"))
    look, flood = json.dumps({"what": text("arguments")}), json.dumps({"lines": 3000})
    said = f"/tool look {look} /tool flood {flood} /next /usage 30 7 /say {text('output')} {text('input')}"
    done = await client.run(
        said, session_id=session_id, run_id=f"{prefix}-done", labels={"run": text("run-label")},
        request_id=text("run-request"),
    )  # fmt: skip
    await done.result()
    asking = await client.run(
        f'/tool pay {json.dumps({"note": text("payment")})} /next /say ok',
        session_id=session_id, run_id=f"{prefix}-asked",
    )  # fmt: skip
    asked = await until_kind(asking, "approval_requested")
    await client.approvals.approve(
        await client.approvals.get(asked[-1].approval_requested.call_id), reason=text("reason")
    )
    await finished(client, f"{prefix}-asked")
    order = json.dumps({"order": f"/say {text('child')}"})
    boss = await client.run(
        f"/tool agent_helper {order} /next /say good", session_id=session_id, agent_id="boss", run_id=f"{prefix}-boss"
    )
    await events_of(boss)
    failed = await client.run(f"/fail REQUEST_INVALID {text('failed')}", session_id=session_id, run_id=f"{prefix}-bad")
    await events_of(failed)
    await client.artifacts.upload(
        text("artifact").encode() * 200, name=text("file-name"), session_id=session_id, labels={"a": text("a-label")}
    )
    await client.session_data.set(session_id, text("key"), json.dumps({"v": text("value")}))
    assert (await client.runs.get(f"{prefix}-boss")).state == RunState.RUN_STATE_COMPLETED
    return session_id


async def put_agents(served: Served) -> None:
    """Define the agents of `fill`, before the first run."""
    await put_agent(served, BOSS)
    await put_agent(served, HELPER)


def found(data: Path, canaries: Sequence[str]) -> dict[str, list[str]]:
    """The canaries in the raw bytes of every file of a directory, by file."""
    hits: dict[str, list[str]] = {}
    for path in sorted(path for path in data.rglob("*") if path.is_file() and path.name != "ballast"):
        content = path.read_bytes()
        is_audit = "audit" in path.relative_to(data).parts
        seen = [
            canary for canary in canaries if canary.encode() in content and not (is_audit and canary.endswith(AUDITED))
        ]
        if seen:
            hits[str(path.relative_to(data))] = seen
    return hits


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that happens by itself and wakes nobody."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def execute(data: Path, statement: str, *values: Any) -> list[Any]:
    """Run a statement on the file of a store that nobody has open."""
    with closing(sqlite3.connect(data / FILE_NAME, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


def raw(data: Path, table: str, column: str, where: str = "1") -> tuple[int, bytes]:
    """The first row with a value that is not empty, by its number, and the value."""
    ((row, value),) = execute(
        data, f"SELECT rowid, {column} FROM {table} WHERE length({column}) > 0 AND {where} ORDER BY rowid LIMIT 1"
    )
    return row, value


def flip(data: Path, table: str, column: str, where: str = "1") -> None:
    """Flip a bit in the middle of a value."""
    row, value = raw(data, table, column, where)
    damaged = bytearray(value)
    damaged[len(damaged) // 2] ^= 0x04
    execute(data, f"UPDATE {table} SET {column} = ? WHERE rowid = ?", bytes(damaged), row)
