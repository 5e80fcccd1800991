"""What the README shows of models is so: its configuration starts a daemon whose model answers a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from behest.client import Client
from tests.daemon_process import running
from tests.interop.typescript.node import INSTALL_SECONDS
from tests.providers import aimock_server

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
ANSWERS = [{"match": {"userMessage": "hello"}, "response": {"content": "Hello to you."}}]

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)


def section() -> str:
    """Read the section about models."""
    (found,) = re.findall(r"^## Models\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)
    return found


async def test_the_shown_configuration_starts_a_daemon_whose_model_answers(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```toml\n(.*?)^```", section(), re.MULTILINE | re.DOTALL)
    async with aimock_server.serving(tmp_path, ANSWERS) as server:
        config = shown.replace("http://127.0.0.1:8080/v1", server.base_url)
        assert config != shown
        async with (
            running(tmp_path / "daemon", config=config, env={"LOCAL_KEY": "not-a-real-key"}) as daemon,
            Client(daemon.address) as client,
        ):
            assert (await client.stream("hello").result()).text == "Hello to you."


def test_the_section_is_short() -> None:
    assert len(section().strip().splitlines()) <= 14
