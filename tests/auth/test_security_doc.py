"""What docs/security.md shows is so: its commands run, its configurations start, its tables are those of the code."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from behestd.config.source import Origin
from behestd.planning import plan as planning
from behestd.service.scopes import ROLES
from tests.auth.authority import Authority
from tests.auth.test_signed_tokens import KEYS
from tests.daemon_process import running

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
GUIDE = (ROOT / "docs" / "security.md").read_text()
BLOCKS = re.findall(r"^```(sh|toml)\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = [text for kind, text in BLOCKS if kind == "sh"]
CONFIGURATIONS = [text for kind, text in BLOCKS if kind == "toml"]
ROWS = re.findall(r"^\| (S\d+) \| .* \| (.*) \|$", GUIDE, re.MULTILINE)
SECONDS = 60


async def shell(text: str, environ: Mapping[str, str]) -> str:
    """Run commands, which must all succeed, and return what they print."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euc", text),
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_a_daemon_is_secured_as_the_guide_says(tmp_path: Path) -> None:  # C139, S1, S3
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("BEHEST")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    making, checking, calling = (text.replace("/etc/behestd", str(tmp_path)) for text in COMMANDS)
    config = CONFIGURATIONS[0].replace("/etc/behestd", str(tmp_path))
    await shell(making, environ)
    (tmp_path / "behestd.toml").write_text(config)
    assert "tokens_file" in await shell(checking, environ)
    async with running(tmp_path, config=config) as daemon:
        said = await shell(calling.replace("127.0.0.1:7717", daemon.address), environ)
    assert "say hello" in said


@pytest.mark.parametrize("text", CONFIGURATIONS[1:], ids=["certificates", "jwt"])
def test_every_configuration_of_the_guide_is_one(text: str, tmp_path: Path) -> None:
    authority = Authority()
    authority.server().write(tmp_path, "tls")
    (tmp_path / "clients.pem").write_bytes(authority.certificate)
    (tmp_path / "jwks.json").write_text(KEYS)
    file = tmp_path / "behestd.toml"
    file.write_text(text.replace("/etc/behestd", str(tmp_path)))
    assert not planning.plan(Origin(file, {"HOME": str(tmp_path)}).load()).is_local


def test_the_roles_of_the_guide_are_those_of_the_daemon() -> None:  # S4
    shown = {}
    for role, cell in re.findall(r"^\| `(\w+)` \| (.*) \|$", GUIDE, re.MULTILINE):
        scopes = set(re.findall(r"`([\w:]+)`", cell))
        shown[role] = scopes - {"reader"} | (set(ROLES["reader"]) if "those of `reader`" in cell else set())
    assert shown == ROLES


def citing(identifier: str) -> set[str]:
    """The files with a test that carries an id in a comment."""
    word = re.compile(rf"#[^\n]*\b{identifier}\b")
    return {
        path.relative_to(TESTS).as_posix()
        for path in TESTS.rglob("test_*.py")
        if path != Path(__file__) and word.search(path.read_text())
    }


def test_every_row_of_the_matrix_is_there_once() -> None:
    assert [name for name, _ in ROWS] == [f"S{number}" for number in range(1, 23)]


@pytest.mark.parametrize(("name", "cell"), ROWS, ids=[name for name, _ in ROWS])
def test_every_row_names_files_with_tests_that_prove_it(name: str, cell: str) -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", cell))
    assert named
    assert named <= citing(name)
