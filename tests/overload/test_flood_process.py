"""A flood against a daemon in a process of its own, at many times what it can do, whatever it answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import flood
from bench.processes import daemon

ORDERS_PER_SECOND = 400


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [pytest.param(1, id="short"), pytest.param(30, id="long", marks=pytest.mark.proof)])
async def test_all_that_was_accepted_of_a_flood_is_done(tmp_path: Path, seconds: int) -> None:  # rows 66, 67
    config = tmp_path / "behestd.toml"
    config.write_text(flood.configuration())
    with daemon("--config", str(config)) as process:
        async with flood.tenant(process, "flooder") as flooder, flood.tenant(process, "quiet") as quiet:
            # Raises when an accepted run is lost or fails, or an order is refused in any way but by shedding.
            found = await flood.flooded(flooder, quiet, ORDERS_PER_SECOND, seconds)
    assert len(found.accepted) + len(found.shed_seconds) == ORDERS_PER_SECOND * seconds
    assert found.accepted
