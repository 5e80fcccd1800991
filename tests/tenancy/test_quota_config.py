"""Quotas and the limits of the load, as the operator writes them: what follows from the file, and from another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from behest.errors import BehestError
from behestd.config.source import ConfigInvalid, Origin
from behestd.plan import Plan
from behestd.planning import plan as planning
from behestd.runtime.quotas import Quota
from behestd.service.credentials import new_token
from tests.lifecycle.stage import configured

QUOTAS = """
[quotas.principal]
watches = 100
runs_per_minute = 60
[quotas.principals."spiffe://example.org/ci"]
runs = 3
[quotas.namespace]
sessions = 1000
[quotas.namespaces.big]
active_runs = 4
artifact_bytes = 1048576
"""


def planned(place: Path, text: str) -> Plan:
    """The plan of a file."""
    file = place / "behestd.toml"
    file.write_text(text)
    return planning.plan(Origin(file, {"HOME": str(place)}).load())


def credentials() -> str:
    """A file's token."""
    made = new_token()
    return f'[[auth.tokens]]\nid = "{made.token_id}"\nhash = "{made.stored}"\nprincipal = "ci"\nrole = "user"\n'


def test_the_file_says_what_each_principal_and_namespace_may_use(tmp_path: Path) -> None:  # C141
    rules = planned(tmp_path, QUOTAS).quotas
    assert rules.of_principal("anybody") == Quota(watches=100, runs_per_minute=60)
    assert rules.of_principal("spiffe://example.org/ci") == Quota(runs=3)
    assert rules.of_namespace("default") == Quota(sessions=1_000)
    assert rules.of_namespace("big") == Quota(active_runs=4, artifact_bytes=1_048_576)


def test_shares_hold_where_there_can_be_others_to_share_with(tmp_path: Path) -> None:
    local, open_to_others = planned(tmp_path, ""), planned(tmp_path, credentials())
    assert (local.quotas.active_share, local.quotas.queue_share) == (1.0, 1.0)
    assert (open_to_others.quotas.active_share, open_to_others.quotas.queue_share) == (0.75, 0.5)
    assert local.quotas.of_namespace("any").watches == 0
    assert open_to_others.quotas.of_namespace("any").watches == 5_000
    own = planned(tmp_path, credentials() + "[server]\nwatches = 10\n[quotas.namespaces.big]\nwatches = 9\n").quotas
    assert (own.of_namespace("any").watches, own.of_namespace("big").watches) == (5, 9)


def test_the_load_has_limits_of_the_machine_unless_the_file_says_others(tmp_path: Path) -> None:
    load = planned(tmp_path, "").overload
    assert (load.commit_seconds, load.disk_bytes) == (0.25, 64 * 1024 * 1024)
    load = planned(tmp_path, "[overload]\nmemory_bytes = 1000\nmemory_share = 0.5\ncommit_seconds = 0.0\n").overload
    assert (load.commit_seconds, load.memory_bytes) == (0.0, 500)
    assert planned(tmp_path, "[overload]\nmemory_bytes = 0\n").overload.memory_bytes == 0


@pytest.mark.parametrize(
    "text",
    ["[quotas]\nqueue_share = 0.0\n", "[quotas.principal]\nactive_runs = 1\n", "[overload]\nmemory_share = 1.5\n"],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigInvalid):
        planned(tmp_path, text)


async def test_another_quota_is_in_force_with_the_next_order(tmp_path: Path) -> None:  # C135, C141
    async with configured(tmp_path, "[quotas.namespace]\nruns = 2\n") as place:
        for _ in range(2):
            await place.client.run("/stall")
        with pytest.raises(BehestError) as caught:
            await place.client.run("/stall")
        assert caught.value.metadata == {"quota": "namespace.runs", "limit": "2"}
        changed, restart = await place.reload("[quotas.namespace]\nruns = 3\n")
        assert (changed, restart) == (["quotas.namespace.runs"], [])
        await place.client.run("/stall")
        with pytest.raises(BehestError) as caught:
            await place.client.run("/stall")
        assert caught.value.metadata["limit"] == "3"
        await place.reload("[overload]\nmemory_bytes = 1\n")
        place.daemon.house.intake.overload.sample()
        with pytest.raises(BehestError) as caught:
            await place.client.run("/stall")
        assert caught.value.reason == "RUNTIME_OVERLOADED"
