"""What docs/model-servers.md says is so: its configuration, its commands, its transcript and its reasons."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path

import pytest

from behest.client import Client
from tests.conformance.broken_models import serving
from tests.conformance.test_transcript import Command, expected, of_buf, said, told, transcript
from tests.daemon_process import running
from tests.test_grpcurl import BUILD_SECONDS

__all__ = ["said"]

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "model-servers.md").read_text()
ADDRESS = "127.0.0.1:7802"
SECONDS = 60.0
SHELL = [
    shlex.split(line.replace("\\\n", " "))
    for fence in re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    for line in fence.splitlines()
]

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 120)


async def run(*words: str, **environment: str) -> str:
    """Run a `behest` command of the document; gives what it prints."""
    program = [sys.executable, "-c", "from behest.cli import main; main()", *words[1:]]
    process = await asyncio.create_subprocess_exec(*program, env=environment or None, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(SECONDS):
        output, errors = await process.communicate()
    assert process.returncode == 0, (output + errors).decode()
    return output.decode()


def command(word: str) -> list[str]:
    """The command of the document that has a word."""
    (found,) = (line for line in SHELL if word in line)
    return found


async def test_the_configuration_makes_a_daemon_whose_default_model_is_the_server_s(tmp_path: Path) -> None:
    (config,) = re.findall(r"^```toml\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    async with serving() as address, running(tmp_path, config=config.replace(ADDRESS, address)) as daemon:
        async with Client(daemon.address) as client:
            assert (await (await client.run("echo this")).result()).text == "echo this"
            assert len((await client.embeddings.embed(["a"])).embeddings) == 1


async def test_a_server_is_registered_as_the_document_says(tmp_path: Path) -> None:
    async with serving() as address, running(tmp_path) as daemon, Client(daemon.address) as client:
        words = [address if word == ADDRESS else word for word in command("register")]
        await run(*words, "--address", daemon.address)
        assert (await client.models.get("birds/echo")).capabilities.tools


async def test_the_examination_is_passed_as_the_document_says() -> None:  # N14
    async with serving() as address:
        words = [address if word == ADDRESS else word for word in command("conformance")]
        output = await run(*words)
    rows = re.findall(r"^(\S+ +pass  .*)$", DOCUMENT, re.MULTILINE)
    assert len(rows) == 5
    for row in rows:
        assert row.split()[:2] in [line.split()[:2] for line in output.splitlines()], output


async def test_the_transcript_of_each_method_is_what_happens(said: Callable[[Command], Command]) -> None:
    every = transcript(DOCUMENT)
    assert {shown.method for shown in every} == {"ListModels", "StreamChat", "Embed"}
    async with serving() as address, asyncio.timeout(SECONDS * 3):
        for shown in every:
            here = [address if word == ADDRESS else word for word in shown.command]
            process = await asyncio.create_subprocess_exec(*said(here), cwd=ROOT, stdout=PIPE, stderr=PIPE)
            output, errors = await process.communicate()
            assert told(output.decode(), errors.decode()) == expected(shown), shown.command


def test_every_reason_of_the_document_is_one_of_the_contract() -> None:
    reasons = set(re.findall(r"\b((?:PROVIDER|AUTH|REQUEST|TOOL)_[A-Z_]+[A-Z])\b", DOCUMENT))
    known = (ROOT / "proto" / "behest" / "v1" / "error_reason.proto").read_text()
    assert reasons
    assert all(f"ERROR_REASON_{reason} =" in known for reason in reasons)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", DOCUMENT))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / "docs" / link).resolve().exists()


def test_the_words_of_buf_are_made_of_those_of_grpcurl() -> None:
    assert of_buf(transcript(DOCUMENT)[0].command)[-1].endswith("behest.v1.ModelService/ListModels")
