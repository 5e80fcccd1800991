"""The daemon is reloaded and restarted under those who follow its runs: no error, and no event less or twice."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import grpc
import pytest

from behest.calls import Backoff
from behest.errors import BehestError
from tests.daemon_process import running
from tests.systemd.manager import listening
from tests.systemd.watchers import check, following, words

CONFIG = """
[limits]
drain_seconds = {drain}
active_runs = 1000
"""


@pytest.mark.parametrize(
    ("watches", "runs", "count", "reloads"),
    [(40, 10, 40, 3), pytest.param(500, 100, 400, 10, marks=[pytest.mark.proof, pytest.mark.timeout(600)])],
)
async def test_watches_go_on_over_reloads_and_a_restart_without_an_error(  # N06
    tmp_path: Path, watches: int, runs: int, count: int, reloads: int
) -> None:
    order = f"/delay 50 /words {count}"
    async with listening() as manager:
        env = {"NOTIFY_SOCKET": manager.address}
        async with running(tmp_path, config=CONFIG.format(drain=0.5), env=env) as daemon:
            await manager.heard("READY")
            async with following(daemon.address, runs=runs, watches=watches, order=order) as crowd:
                await crowd.all_have_begun()
                for number in range(reloads):
                    daemon.send_signal(signal.SIGHUP)
                    await manager.heard("RELOADING", times=number + 1)
                    await manager.heard("READY", times=number + 2)
                # What is in flight is cut off, and taken up again.
                assert await daemon.terminate() == 0
                await daemon.start()
                await crowd.end()
            check(crowd, words(count))
            assert daemon.log.count("configuration reloaded") == reloads


async def test_a_daemon_that_drains_was_heard_and_is_waited_for() -> None:  # N06
    draining = BehestError(grpc.StatusCode.UNAVAILABLE, "RUNTIME_DRAINING", "", retry_seconds=0.01)
    backoff, end = Backoff(0.01), time.monotonic() + 0.3
    while time.monotonic() < end:
        await backoff.pause(draining, give_up_seconds=0.1)
    gone = BehestError(grpc.StatusCode.UNAVAILABLE, "TRANSPORT_UNAVAILABLE", "")
    with pytest.raises(BehestError) as caught:
        while True:
            await backoff.pause(gone, give_up_seconds=0.1)
    assert caught.value.reason == "TRANSPORT_UNAVAILABLE"
