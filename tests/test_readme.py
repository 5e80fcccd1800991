"""What the README says is so: targets, services, rooms, links, words, snippets. For grpcurl see test_grpcurl."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from behestd.config.source import Origin
from behestd.planning import models as planning_models
from tests.daemon_process import running

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
WORDS = set(
    "namespace session run step attempt event sequence epoch effect log view cursor".split()
)  # the words of the house, one an idea
SECONDS = 20


def fences(language: str) -> list[str]:
    """Read the snippets of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def rows(header: str) -> list[list[str]]:
    """Read the rows of the table whose first column has a header."""
    table = README[README.index(f"| {header} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_make_target_named_is_there() -> None:
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", README))
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "check"} <= named <= targets


def test_the_services_named_are_those_of_the_contract() -> None:
    named = [name for row in rows("Service") for name in row[0].split(", ")]
    contract = "".join(path.read_text() for path in (ROOT / "proto/behest/v1").glob("*.proto"))
    assert sorted(named) == sorted(re.findall(r"^service (\w+)", contract, re.MULTILINE))


def test_the_rooms_named_are_those_of_the_house() -> None:
    house = README[README.index("## The house") :]
    named = re.findall(r"(?:^|· ?\n?)`(\w+)` ", house, re.MULTILINE)
    assert sorted(named) == sorted(path.parent.name for path in (ROOT / "behestd").glob("*/__init__.py"))


def test_the_glossary_has_eight_words_of_ours() -> None:
    words = {cell for row in rows("Word") for cell in row[::2]}
    assert len(words) == 8
    assert words <= WORDS


def test_every_link_into_the_repository_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_commands_named_are_those_of_behestd() -> None:
    named = set(re.findall(r"\bbehestd ([a-z-]+)", README)) - {"and"}
    help_text = subprocess.run(
        [sys.executable, "-m", "behestd", "--help"], capture_output=True, text=True, timeout=SECONDS, check=True
    ).stdout
    assert {"serve", "check-config", "config-example"} <= named
    assert [name for name in named if f"\n  {name} " not in help_text] == []


def test_the_shown_configuration_is_one(tmp_path: Path) -> None:
    (shown,) = fences("toml")
    assert tomllib.loads(shown)
    file = tmp_path / "behestd.toml"
    file.write_text(shown)
    configuration = Origin(file, {"HOME": str(tmp_path), "LOCAL_KEY": "x"}).load()
    assert planning_models.models(configuration).resolve("").model.id == "local/qwen3-8b"


def test_the_first_snippet_has_twelve_lines_at_most() -> None:
    assert len(fences("python")[0].splitlines()) <= 12


async def finished(*command: str) -> str:
    """Run a command, which must succeed, and return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_the_first_snippet_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        code = fences("python")[0].replace("127.0.0.1:7717", daemon.address)
        output = await finished(sys.executable, "-c", code)
    assert output.startswith("say hello\n")


@pytest.mark.parametrize("text", ["| Word |", "| Service |", "Apache-2.0 OR MIT", "```sh"])
def test_the_parts_are_there(text: str) -> None:
    assert text in README
