"""`behest usage` against a real daemon process."""

from __future__ import annotations

import asyncio
import json
import sysconfig
from pathlib import Path

from behest.client import Client
from tests.daemon_process import running

BEHEST = Path(sysconfig.get_path("scripts")) / "behest"


async def shown(address: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    process = await asyncio.create_subprocess_exec(str(BEHEST), "usage", "--address", address, *arguments, stdout=-1)
    async with asyncio.timeout(50):
        stdout, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stdout.decode()


async def test_usage_is_shown_as_a_table_and_as_json(tmp_path: Path) -> None:  # C117
    async with running(tmp_path, config="[budgets.default]\nmax_calls = 9\n") as daemon:
        async with Client(daemon.address) as client:
            for said, model in (("/usage 1000 50 400 /say x", "scripted/priced"), ("/usage 7 3", "scripted/unpriced")):
                await (await client.run(said, model=model)).result()
        code, table = await shown(daemon.address, "--by", "model", "--since", "2020-01-01")
        _, text = await shown(daemon.address, "--by", "model", "--by", "purpose", "--output", "json")
        _, none = await shown(daemon.address, "--until", "2020-01-01")

    lines = [line.split() for line in table.splitlines()]
    assert code == 0
    assert lines[0] == ["MODEL", "CALLS", "INPUT", "OUTPUT", "CACHED", "HITS", "COST_USD"]
    assert lines[1] == ["scripted/priced", "1", "1000", "50", "400", "40%", "0.000740"]
    assert lines[2][-1] == "unknown"
    assert lines[3] == ["total", "2", "1007", "53", "400", "40%", "0.000740", "and", "1", "calls", "unknown"]
    document = json.loads(text)
    assert [row["model"] for row in document["rows"]] == ["scripted/priced", "scripted/unpriced"]
    assert document["total"]["usage"]["attempts"] == 2
    assert document["budget"]["calls"] == "2"
    assert none.splitlines()[1].split() == ["0", "0", "0", "0", "0.000000"]
