"""Tool servers of all clients pass the examination, with a file that remembers and without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from behest.conformance.tools import Plan, examine
from behest.conformance.verdict import Verdict
from tests.interop.common.languages import BUILD_SECONDS, GO, PYTHON_LITE, TYPESCRIPT, Language, serving

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 120)

TOKEN = "conformance-token"
CALLS = (
    ("count", "{}"),
    ("fail", '{"why": "of course"}'),
    ("large", '{"bytes": 5242880}'),
    ("work", '{"seconds": 0.7}'),
    ("work", '{"seconds": 300}'),
)
WITHOUT_FILE = {"status.tombstone", "status.tombstone_later"}
# An output schema is what their tools do not declare.
WITHOUT_OUTPUT_SCHEMA = {GO, PYTHON_LITE}


@pytest.mark.parametrize("memory", ["file", "process"])
@pytest.mark.parametrize("language", [GO, PYTHON_LITE, TYPESCRIPT], ids=str)
async def test_the_server_of_a_language_passes(language: Language, memory: str, tmp_path: Path) -> None:  # N05, N14
    store = str(tmp_path / "calls") if memory == "file" else ""
    async with serving(language, store, TOKEN) as (_, probe):
        found = await examine(Plan(probe.address, calls=CALLS, token=TOKEN, seconds=20.0))
    cannot = set() if store else WITHOUT_FILE
    cannot = cannot | ({"call.output_schema"} if language in WITHOUT_OUTPUT_SCHEMA else set())
    assert [each for each in found if each.verdict is not Verdict.PASS and each.check not in cannot] == []
    assert {each.verdict for each in found if each.check in cannot} <= {Verdict.SKIP}
