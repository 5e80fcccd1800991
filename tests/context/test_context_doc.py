"""docs/context.md: its configuration is taken, its extension and its server give what they say."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from behest.context_server import ContextServer
from behest.v1.agent_pb2 import Agent
from behest.v1.context_pb2 import ContextFailurePolicy
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behestd.config.source import Origin
from behestd.planning.plan import plan
from behestd.wire.endpoint import allow_list
from tests.core.test_estimate import WORST, WORST_CORRECTED, WORST_OF_ALL
from tests.daemons import serve

TEXT = (Path(__file__).resolve().parent.parent.parent / "docs" / "context.md").read_text()


def snippets(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)


async def test_the_example_gives_a_model_its_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # C102 C137
    [configuration] = snippets("toml")
    extension, served_elsewhere = snippets("python")
    (tmp_path / "office.py").write_text(extension)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "office", raising=False)
    (tmp_path / "behestd.toml").write_text(configuration)
    made = plan(Origin(tmp_path / "behestd.toml", {"HOME": str(tmp_path)}).load())
    scope: dict[str, Any] = {}
    exec(compile(served_elsewhere, "docs/context.md", "exec"), scope)
    server: ContextServer = scope["server"]
    for _ in range(2):  # A plan makes a daemon more than once, and extensions register with each.
        async with (
            server,
            serve(tools=made.tools, sources=made.sources, endpoints=allow_list(["127.0.0.1/32"])) as served,
        ):
            port = await server.serve("127.0.0.1:0")
            await served.client.servers.register(
                Server(
                    name="home",
                    connection=ServerConnection.SERVER_CONNECTION_DIALLED,
                    address=f"127.0.0.1:{port}",
                    offers=[ServerOffer.SERVER_OFFER_CONTEXT],
                )
            )
            await served.client.agents.create(
                Agent(id="clerk", context_sources=["calendar", "weather", "rules"], tools=[])
            )
            async with asyncio.timeout(20):
                answer = await served.client.stream("/recall", agent_id="clerk").result()
            assert answer.text.splitlines() == [
                "fact tone = friendly",
                "fact meeting = 10:00",
                "fact weather = rain",
            ]
            listed = {source.name: source async for source in served.client.context.sources()}
            assert listed["calendar"].description == "What is on today."
            assert listed["calendar"].max_tokens == 500
            assert listed["calendar"].on_failure == ContextFailurePolicy.CONTEXT_FAILURE_POLICY_FAIL
            assert listed["weather"].max_share_percent == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('kind = "static"', "text is for static sources"),
        ('kind = "function"\ntext = "x"', "text is for static sources"),
        ('kind = "remote"', "server is for remote sources"),
        ('kind = "static"\ntext = "x"\nsource = "y"', "source is for remote sources"),
        ('kind = "other"', "kind"),
        ('kind = "function"\nmax_share_percent = 101', "max_share_percent"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "behestd.toml").write_text(f"[context.sources.x]\n{text}\n")
    with pytest.raises(Exception, match=re.escape(told)) as caught:
        Origin(tmp_path / "behestd.toml", {"HOME": str(tmp_path)}).load()
    assert getattr(caught.value, "reason", "") == "RUNTIME_CONFIG_INVALID"


@pytest.mark.parametrize("name", ["history", "instructions", "run", "tools"])
def test_names_of_parts_of_a_call_are_no_names_of_sources(tmp_path: Path, name: str) -> None:
    (tmp_path / "behestd.toml").write_text(f'[context.sources.{name}]\nkind = "static"\ntext = "x"\n')
    with pytest.raises(Exception, match="part of every call"):
        Origin(tmp_path / "behestd.toml", {"HOME": str(tmp_path)}).load()


def test_the_text_states_the_errors_that_are_tested() -> None:  # C078
    for error in (WORST, WORST_OF_ALL, WORST_CORRECTED):
        assert f"| {round(error * 100)} %" in TEXT
