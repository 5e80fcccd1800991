"""What docs/providers.md shows is so: each configuration starts a daemon whose models answer."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from behest.client import Client
from behest.v1.chat_service_pb2 import Chat
from behestd.config.source import Origin
from behestd.planning.models import models
from behestd.providers.failure import CLASSES
from tests.daemon_process import DaemonProcess, running
from tests.interop.typescript.node import INSTALL_SECONDS
from tests.providers import aimock_server
from tests.providers.conformance import user
from tests.providers.shell import finished

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "providers.md").read_text()
SHOWN = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
KEYS = {"OPENAI_API_KEY": "not-a-real-key", "ANTHROPIC_API_KEY": "not-a-real-key"}
ANSWERS = [
    {"match": {"userMessage": "hello"}, "response": {"content": "Hello to you."}},
    {"match": {"inputText": "hello"}, "response": {"embedding": [0.5, 0.25]}},
]

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 120)


def named(text: str) -> str:
    """Name a configuration by its default model."""
    chosen = tomllib.loads(text)["models"]
    return str(chosen.get("default") or chosen["default_embedding"])


def providers(text: str) -> dict[str, Any]:
    """Read the providers that a configuration has."""
    found: dict[str, Any] = tomllib.loads(text)["providers"]
    return found


def pointed(text: str, url: str) -> str:
    """Point the providers of a configuration at a server, whether they name an address or leave it at the vendor's."""
    at = f'base_url = "{url}"'
    with_address = re.sub(r"^base_url = .*$", at, text, flags=re.MULTILINE)
    return re.sub(r"^(api_key = .*)$", rf"\1\n{at}", with_address, flags=re.MULTILINE)


@asynccontextmanager
async def served(text: str, home: Path) -> AsyncIterator[DaemonProcess]:
    """Start a daemon with a shown configuration, its vendors being a server of their formats on this machine."""
    if all(provider["kind"] == "embedded" for provider in providers(text).values()):
        async with running(home / "daemon", config=text) as daemon:
            yield daemon
        return
    async with aimock_server.serving(home, ANSWERS) as server:
        config = pointed(text, server.base_url)
        assert config.count(server.base_url) == len(providers(text))
        async with running(home / "daemon", config=config, env=KEYS) as daemon:
            yield daemon


def test_all_kinds_are_shown() -> None:
    assert {each["kind"] for text in SHOWN for each in providers(text).values()} == {"openai", "anthropic", "embedded"}


@pytest.mark.parametrize("text", SHOWN, ids=named)
def test_each_shown_configuration_gives_the_models_that_it_names(text: str, tmp_path: Path) -> None:
    file = tmp_path / "behestd.toml"
    file.write_text(text)
    found = models(Origin(file, {"HOME": str(tmp_path), **KEYS}, ()).load())
    for provider_id, provider in providers(text).items():
        assert found.provider(provider_id).describe().adapter == provider["kind"]
        for model in provider.get("models", ()):
            name = model if isinstance(model, str) else model["name"]
            able = found.resolve(f"{provider_id}/{name}").model.capabilities
            assert able.embeddings if "embedding" in name else able.chat and able.tools
    assert found.resolve("").model.is_default


@pytest.mark.parametrize("text", SHOWN, ids=named)
async def test_the_models_of_each_shown_configuration_answer(text: str, tmp_path: Path) -> None:
    async with served(text, tmp_path) as daemon, Client(daemon.address) as client:
        shown = [model async for model in client.models.list() if model.provider_id in providers(text)]
        for model in shown:
            if model.capabilities.embeddings:
                answer = await client.embeddings.embed(["hello"], model=model.id)
                assert (answer.model, len(answer.embeddings)) == (model.id, 1)
            else:
                end = await client.chat.complete(Chat(model=model.id, messages=[user("hello")]))
                assert "".join(part.text.text for part in end.message.parts) == "Hello to you."
        if "default" in tomllib.loads(text)["models"]:
            assert (await client.stream("hello").result()).text == "Hello to you."
    assert shown


async def test_the_shown_command_prints_a_vector_for_each_text(tmp_path: Path) -> None:
    (line,) = [line for line in GUIDE.splitlines() if line.startswith("behest embed ")]
    (text,) = [text for text in SHOWN if "embedded" in providers(text)]
    async with served(text, tmp_path) as daemon:
        command = [str(Path(sys.executable).parent / "behest"), *shlex.split(line)[1:], "--address", daemon.address]
        output = await finished(*command)
    vectors = [[float(number) for number in row.split()] for row in output.splitlines() if len(row.split()) > 100]
    assert [len(vector) for vector in vectors] == [384, 384]
    assert sum(one * other for one, other in zip(*vectors, strict=True)) > 0.5


def test_the_reasons_named_are_those_of_the_contract() -> None:
    found = set(re.findall(r"\bPROVIDER_[A-Z_]+", GUIDE))
    assert len(found) > 8
    assert found <= set(CLASSES)


def test_every_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", GUIDE) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
