"""A process that commits for ever and prints what was acknowledged: `python -m tests.log.committer DIR FULL|NORMAL`.

Each line is "run last_sequence". Ends with 70 when a commit is unknown, as the daemon does.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from behestd import errors
from behestd.log.log import Log
from behestd.log.sqlite import SqliteStore
from behestd.log.store import Committed, CommitUnknown
from tests.log.items import Script

WRITERS = 4


async def commit_for_ever(log: Log, name: str) -> None:
    """Append run after run, ten commits each."""
    number = 0
    while True:
        number += 1
        run = Script(f"{name}_{number}", f"session_{name}")
        for step in range(10):
            outcome = await log.commit(run.append(is_ended=step == 9, padding=300))
            assert isinstance(outcome, Committed), outcome
            os.write(1, f"{run.run_id} {run.last}\n".encode())


async def main() -> None:
    """Run writers over one log until something ends the process."""
    synchronous = "NORMAL" if sys.argv[2] == "NORMAL" else "FULL"
    store = await SqliteStore.open(Path(sys.argv[1]), ballast_bytes=0, synchronous=synchronous)
    log = await Log.open(store)
    async with asyncio.TaskGroup() as group:
        group.create_task(log.run())
        for number in range(WRITERS):
            group.create_task(commit_for_ever(log, f"{os.getpid()}_{number}"))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except* (errors.StorageFailed, CommitUnknown):
        os._exit(70)
