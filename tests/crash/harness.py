"""Real processes for crash tests: a daemon that is killed and started again on one data directory and one address.

What a dead daemon left is read from its files by `Remains`, read-only and without any code that would repair it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from behest.calls import Patience
from behest.client import Client
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.event_pb2 import Event
from behestd.log import frames
from behestd.log.sqlite_schema import FILE_NAME
from tests import ports

START_SECONDS = 20.0
EFFECTS = {
    "pure": "pure",
    "idempotent": "idempotent",
    "queryable": "non_idempotent_queryable",
    "payment": "non_idempotent",
}
"""The tools of the ledger server, one a class."""
PATIENCE = Patience(pause_seconds=0.2, repeat_seconds=45.0)


class Unready(Exception):
    """Raised when a process ended before it was ready."""

    def __init__(self, code: int, stderr: str) -> None:
        super().__init__(f"exit {code}: {stderr}")
        self.code = code


@dataclass
class Dead:
    """How a daemon ended: its exit code (negative: the signal) and what it said."""

    code: int
    stderr: str

    def assert_killed_at(self, point: str) -> None:
        """Check that it was the named point that killed it."""
        assert self.code == -signal.SIGKILL, (self.code, self.stderr[-2000:])
        assert f"failpoint {point}\n" in self.stderr


class Running:
    """A daemon process. It is killed when the test leaves."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, log: Path) -> None:
        self.process = process
        self.address = address
        self.log = log

    async def dead(self, seconds: float = 10.0) -> Dead:
        """Wait for its end."""
        async with asyncio.timeout(seconds):
            code = await self.process.wait()
        return Dead(code, self.log.read_text())

    async def kill(self) -> Dead:
        """End it with SIGKILL."""
        if self.process.returncode is None:
            self.process.kill()
        return await self.dead()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def stop(self, seconds: float = 15.0) -> Dead:
        """End it with SIGTERM."""
        self.send(signal.SIGTERM)
        return await self.dead(seconds)


async def spawn(arguments: list[str], log: Path, points: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start `behestd`, armed with BEHEST_FP, and give its process and address when it serves. Raises Unready."""
    read_end, write_end = os.pipe()
    with log.open("ab") as stderr, os.fdopen(read_end) as ready:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "behestd",
                *arguments,
                "--ready-fd",
                str(write_end),
                pass_fds=(write_end,),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=os.environ | {"BEHEST_FP": points},
            )
        finally:
            os.close(write_end)
        try:
            async with asyncio.timeout(START_SECONDS):
                address = (await asyncio.to_thread(ready.readline)).strip()
        except BaseException:
            process.kill()
            await process.wait()
            raise
    if not address:
        raise Unready(await process.wait(), log.read_text()[-3000:])
    return process, address


@dataclass
class Site:
    """A data directory with the daemons that live on it, one after the other, at one address."""

    home: Path
    tools: str = ""
    address: str = field(default_factory=ports.address)
    drain_seconds: float = 0.5
    grace_seconds: float = 1.0
    starts: int = 0
    running: list[Running] = field(default_factory=list)

    async def start(self, points: str = "") -> Running:
        """Start a daemon, armed with BEHEST_FP."""
        self.starts += 1
        config = self.home / "behestd.toml"
        config.write_text(self._config())
        log = self.home / f"stderr-{self.starts}"
        arguments = ["serve", "--config", str(config), "--listen", self.address, "--data-dir", str(self.home / "data")]
        process, self.address = await spawn(arguments, log, points)
        made = Running(process, self.address, log)
        self.running.append(made)
        return made

    async def start_to_die(self, points: str) -> Dead:
        """Start a daemon that dies while it recovers, before or after it says that it is ready."""
        log = self.home / f"stderr-{self.starts + 1}"
        try:
            return await (await self.start(points)).dead()
        except Unready as died:
            return Dead(died.code, log.read_text())

    def _config(self) -> str:
        tables = [
            f"[limits]\ncancel_grace_seconds = {self.grace_seconds}\ndrain_seconds = {self.drain_seconds}",
            "sweep_seconds = 1.0",
            '[permissions]\ndefault = "allow"',
        ]
        if self.tools:
            server = f'[[tools.servers]]\nname = "ledger"\naddress = "{self.tools}"\ndedupe_retention_seconds = 259200'
            effects = [f'[tools.servers.policies.{name}]\nside_effect = "{effect}"' for name, effect in EFFECTS.items()]
            tables += [server, *effects]
        return "\n".join(tables)

    def client(self, patience: Patience = PATIENCE) -> Client:
        """Make a client of whoever serves at the address."""
        return Client(self.address, patience=patience)

    def remains(self) -> Remains:
        """Read what is on the disk."""
        return Remains(self.home / "data" / FILE_NAME)

    async def close(self) -> None:
        """Kill what still runs."""
        for daemon in self.running:
            if daemon.process.returncode is None:
                await daemon.kill()


@asynccontextmanager
async def site(home: Path, **settings: Any) -> AsyncIterator[Site]:
    """Make a site without tools whose daemons end with the block."""
    made = Site(home, **settings)
    try:
        yield made
    finally:
        await made.close()


class Remains:
    """The files of a store, read without a daemon."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def events(self, run_id: str) -> list[Event]:
        """The log of a run, in order; empty when there is none."""
        return [Event.FromString(data) for data in self.log(run_id)]

    def log(self, run_id: str) -> list[bytes]:
        """The log of a run as it is stored."""
        query = "SELECT data FROM chunks WHERE run = (SELECT key FROM runs WHERE run_id = ?) ORDER BY first_sequence"
        rows = self._rows(query, run_id)
        return [data for (chunk,) in rows for data in frames.split(chunk)]

    def kinds(self, run_id: str) -> list[str]:
        """The kinds of a run's events, in order."""
        return [event.WhichOneof("payload") or "" for event in self.events(run_id)]

    def run_ids(self) -> list[str]:
        """All runs."""
        return [run_id for (run_id,) in self._rows("SELECT run_id FROM runs ORDER BY run_id")]

    def state(self, run_id: str) -> int:
        """The state that the daemon wrote down of a run."""
        ((state,),) = self._rows("SELECT state FROM runs WHERE run_id = ?", run_id)
        return int(state)

    def definition(self, digest: bytes) -> RunDefinition:
        """A definition by its hash."""
        ((body,),) = self._rows("SELECT body FROM definitions WHERE hash = ?", digest)
        return RunDefinition.FromString(body)

    def session_runs(self) -> dict[str, list[tuple[int, str]]]:
        """The runs that have started, by session: their session_index and id, ascending."""
        found: dict[str, list[tuple[int, str]]] = {}
        query = "SELECT session_id, session_index, run_id FROM runs WHERE session_index > 0 ORDER BY session_index"
        for session_id, index, run_id in self._rows(query):
            found.setdefault(session_id, []).append((index, run_id))
        return found

    def positions(self, run_id: str) -> dict[int, int]:
        """The commit position of each event of a run, by sequence."""
        query = "SELECT first_sequence, last_sequence, position FROM chunks"
        rows = self._rows(f"{query} WHERE run = (SELECT key FROM runs WHERE run_id = ?)", run_id)
        return {sequence: position for first, last, position in rows for sequence in range(first, last + 1)}

    def _rows(self, query: str, *values: str | bytes) -> list[tuple[Any, ...]]:
        # Read-only: the last writer to close a file would put its WAL away, and a start looks for that.
        connection = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, isolation_level=None)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()


class LedgerFile:
    """The ledger of a tool server, read from outside."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self, run_id: str) -> list[dict[str, Any]]:
        """The dispatches and effects of a run, and what was asked about its keys."""
        lines = [json.loads(line) for line in self._path.read_text().splitlines()]
        keys = {line["key"] for line in lines if line.get("run") == run_id}
        return [line for line in lines if line["key"] in keys]

    def count(self, run_id: str, what: str) -> int:
        """How often something happened for a run."""
        return sum(line["what"] == what for line in self.lines(run_id))
