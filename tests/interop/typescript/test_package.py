"""The TypeScript package itself: its checks hold, what its README shows runs, and so do its examples."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from behest.client import Client
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from tests.daemon_process import running as daemon_running
from tests.interop.typescript.node import BUILT, INSTALL_SECONDS, PACKAGE, ROOT, SECONDS, compiled, make, node, running

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 120)

README = (PACKAGE / "README.md").read_text()


def snippets() -> list[str]:
    """Read the programs of the README."""
    return re.findall(r"^```ts\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def written(name: str, code: str) -> Path:
    """Compile a program, in a project of its own within the package, and give its script."""
    node()
    folder = BUILT / "readme" / name
    folder.mkdir(parents=True, exist_ok=True)
    options = {"rootDir": ".", "outDir": "out", "declaration": False}
    config = {"extends": "../../../tsconfig.json", "compilerOptions": options, "include": ["*.ts"]}
    (folder / "tsconfig.json").write_text(json.dumps(config))
    (folder / "main.ts").write_text(code)
    compiled(folder)
    return folder / "out" / "main.js"


def dialled(port: str) -> Server:
    """Make the registration of a server on loopback."""
    return Server(
        name="calc",
        connection=ServerConnection.SERVER_CONNECTION_DIALLED,
        address=f"127.0.0.1:{port}",
        offers=[ServerOffer.SERVER_OFFER_TOOLS],
    )


async def called(client: Client, order: str) -> str:
    """Run an order, and give the text of its output."""
    run = await client.run(order)
    async with asyncio.timeout(SECONDS):
        return (await run.result()).text


def replaced(code: str, *changes: tuple[str, str]) -> str:
    """Replace parts of a program that must be there."""
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    return code


def test_style_types_own_tests_and_generated_code_hold() -> None:
    node()
    checked = make("check-clients-typescript")
    assert checked.returncode == 0, checked.stdout


def test_the_lock_file_pins_everything_and_names_no_host() -> None:
    lock = json.loads((PACKAGE / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert all("version" in package and "integrity" in package for package in packages.values())
    assert not any("resolved" in package for package in packages.values())
    own = json.loads((PACKAGE / "package.json").read_text())
    versions = [*own["dependencies"].values(), *own["devDependencies"].values()]
    assert [version for version in versions if not re.fullmatch(r"[\d.]+", version)] == []


def test_files_keep_the_limit_of_the_house() -> None:
    sources = [path for path in PACKAGE.rglob("*.ts") if not {"gen", "node_modules", "dist", "build"} & {*path.parts}]
    assert sources
    assert [path.name for path in sources if len(path.read_text().splitlines()) > 400] == []
    assert all(len(snippet.splitlines()) <= 25 for snippet in snippets())


async def test_the_client_of_the_readme_runs(tmp_path: Path) -> None:
    async with daemon_running(tmp_path) as daemon:
        script = written("client", replaced(snippets()[0], ("127.0.0.1:7717", daemon.address)))
        async with running(script) as program:
            output = "\n".join([line async for line in program.lines()])
            assert await program.end() == 0
    assert output.startswith("say hello")


@pytest.mark.parametrize("mode", ["dialled", "attached"])
async def test_the_tool_server_of_the_readme_serves_in_both_modes(mode: str, tmp_path: Path) -> None:  # C024, C025
    async with daemon_running(tmp_path / "daemon") as daemon, Client(daemon.address) as client:
        # The snippet keeps its port to itself, and uses the address that daemons have by default.
        serving = f'await server.attach("{daemon.address}", "calc"); console.log("")'
        if mode == "dialled":
            serving = 'console.log(await server.serve("127.0.0.1:0"))'
        code = replaced(
            snippets()[1],
            ('"calls.sqlite3"', json.dumps(str(tmp_path / "calls.sqlite3"))),
            ('await server.serve("127.0.0.1:7801")', serving),
        )
        assert 'await server.attach("127.0.0.1:7717", "calc")' in code
        async with running(written(mode, code)) as program:
            async with asyncio.timeout(SECONDS):
                assert program.process.stdout is not None
                port = (await program.process.stdout.readline()).decode().strip()
            if mode == "dialled":
                await client.servers.register(dialled(port))
            assert await called(client, '/tool add {"a": 2, "b": 3}') == "add: 5"
            program.process.terminate()
            assert await program.end() == 0


async def test_the_examples_run(tmp_path: Path) -> None:
    node()
    compiled(PACKAGE / "tsconfig.examples.json")
    script: Callable[[str], Path] = (BUILT / "examples").joinpath
    async with daemon_running(tmp_path / "daemon") as daemon, Client(daemon.address) as client:
        async with running(script("dialled.js"), "127.0.0.1:0", str(tmp_path / "dialled.sqlite3")) as program:
            await client.servers.register(dialled(await program.expect("ready")))
            divided = await called(client, '/tool divide {"dividend": 7, "divisor": 2}')
            failed = await called(client, '/tool divide {"dividend": 7, "divisor": 0}')
        async with running(script("attached.js"), daemon.address, str(tmp_path / "attached.sqlite3")) as program:
            await program.expect("attached")
            waited = await called(client, '/tool wait {"seconds": 1}')
        async with running(script("run.js"), "say hello", daemon.address) as program:
            assert "completed" in "\n".join([line async for line in program.lines()])
    assert '{"quotient":3,"remainder":1}' in divided
    assert "nothing can be divided by 0" in failed
    assert waited == "wait: done"


def test_the_readme_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert [link for link in links if not (PACKAGE / link).exists()] == []
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", README)) <= targets
