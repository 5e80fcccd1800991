"""The model server in Go: it keeps the contract, and a daemon routes to it, dialled and attached."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from pathlib import Path

import pytest

from behest.client import Client
from behest.conformance.models import Plan, examine
from behest.conformance.models_survey import Prompts
from behest.conformance.verdict import Verdict
from behest.errors import BehestError
from behest.v1.embedding_service_pb2 import EmbedRequest
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from tests.daemon_process import running
from tests.interop.go.golang import BUILD_SECONDS, SECONDS, Program, program

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 120)

EXAMPLE = "./examples/modelserver"
PROMPTS = Prompts("echo {mark}", "now look_up", "for ever")
OFFERS = (ServerOffer.SERVER_OFFER_CHAT, ServerOffer.SERVER_OFFER_EMBEDDINGS)


async def ready(server: Program) -> str:
    """Wait until the server listens. Gives its address."""
    found = re.search(r"address=(\S+)", await server.expect("model server ready"))
    assert found is not None
    return found[1]


async def test_the_example_keeps_the_contract() -> None:  # N14
    async with program(EXAMPLE, "127.0.0.1:0") as server:
        found = await examine(Plan(await ready(server), prompts=PROMPTS, seconds=20.0))
    assert [each for each in found if each.verdict is Verdict.FAIL] == []
    assert {each.check for each in found if each.verdict is Verdict.SKIP} == {"error.token", "list.get"}


async def test_a_daemon_routes_runs_chats_and_vectors_to_it(tmp_path: Path) -> None:
    async with (
        program(EXAMPLE, "127.0.0.1:0") as server,
        running(tmp_path) as daemon,
        Client(daemon.address) as client,
        asyncio.timeout(SECONDS),
    ):
        dialled = ServerConnection.SERVER_CONNECTION_DIALLED
        address = await ready(server)
        made = await client.servers.register(Server(name="go", connection=dialled, address=address, offers=OFFERS))
        assert list(made.model_ids) == ["go/letters", "go/parrot"]
        run = await client.run("hello from go", model="go/parrot")
        assert (await run.result()).text == "hello from go"
        response = await client.stubs.embeddings.Embed(EmbedRequest(model="go/letters", inputs=["a", "b"]))
        assert len(response.embeddings) == 2


async def test_it_attaches_answers_and_stops_what_is_not_wanted(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, Client(daemon.address) as client, asyncio.timeout(SECONDS):
        async with program(EXAMPLE, "attach", daemon.address, "go"):
            while "go/parrot" not in [model.id async for model in client.models.list()]:
                await asyncio.sleep(0.05)
            run = await client.run("hello from go", model="go/parrot")
            assert (await run.result()).text == "hello from go"
            assert len((await client.embeddings.embed(["a", "b"], model="go/letters")).embeddings) == 2
            with pytest.raises(BehestError) as caught:
                await client.embeddings.embed(["a"], model="go/letters", dimensions=3)
            assert caught.value.reason == "PROVIDER_REQUEST_INVALID"
            for number in range(3):
                endless = await client.run("for ever", run_id=f"run-{number}", model="go/parrot")
                async with aclosing(endless.text()) as texts:
                    assert await anext(texts)
                await endless.cancel()
            assert (await (await client.run("still there", model="go/parrot")).result()).text == "still there"
