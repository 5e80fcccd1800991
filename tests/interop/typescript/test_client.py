"""What is special to the TypeScript client: repeated orders, and what its errors carry."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon_process import running
from tests.interop.typescript.node import INSTALL_SECONDS, facts

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 120)

NOT_FOUND = 5


async def test_the_same_request_id_is_the_same_run_and_a_refusal_carries_its_facts(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        created, streamed = await facts(daemon.address, "twice", "hello")
        [refused] = await facts(daemon.address, "fail", "hello", "scripted/no-such")
    assert created == {"same": True, "replayed": [False, True]}
    assert streamed == {"same": True, "replayed": [True]}
    assert (refused["error"], refused["reason"]) == ("BehestError", "PROVIDER_MODEL_NOT_FOUND")
    assert (refused["code"], refused["metadata"]["model"]) == (NOT_FOUND, "scripted/no-such")
