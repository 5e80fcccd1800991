"""The unit under a real systemd: started, used, reloaded, killed, hung, stopped; from the source tree, or the package.

Where no systemd can be booted (no root, no namespaces) these skip and say why.
"""

from __future__ import annotations

import asyncio
import re
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from behest.calls import Patience
from behest.client import Client
from deploy import deb
from tests.systemd.machine import ROOT, SHOWN, CannotBoot, Machine, booted
from tests.systemd.watchers import check, following, words

pytestmark = pytest.mark.timeout(600)

UNIT = "behestd.service"
SOCKET = "/run/behestd/behestd.sock"
# The interpreter and the modules of a test may be in somebody's home.
FROM_TREE = f"""\
[Service]
ProtectHome=no
Environment=PYTHONPATH={SHOWN}:{SHOWN}/clients/python PYTHONDONTWRITEBYTECODE=1
"""
IDLE = "serving: 0 live runs, 0 watches"
PATIENCE = Patience(pause_seconds=0.5)


@dataclass(frozen=True, slots=True)
class Service:
    """behestd, installed on a machine of its own."""

    machine: Machine

    @property
    def address(self) -> str:
        """Where it listens, as seen from outside."""
        return f"unix:{self.machine.root}{SOCKET}"

    async def started(self, *, restarts: int) -> None:
        """Wait until systemd has restarted it that often and it serves."""
        await self.machine.until(UNIT, "NRestarts", str(restarts))
        await self.machine.until(UNIT, "ActiveState", "active")

    async def pid(self) -> str:
        """Return the process that serves."""
        return await self.machine.show(UNIT, "MainPID")


async def _from_tree(machine: Machine) -> None:
    python = Path(sys.executable)
    if python.is_relative_to(ROOT):
        python = SHOWN / python.relative_to(ROOT)
    machine.open_to_services(Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve())
    root = machine.root
    for source, target in deb.COPIES.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (root / target).write_bytes((ROOT / "deploy" / source).read_bytes())
    for program, module in deb.PROGRAMS.items():
        script = root / "usr/bin" / program
        script.write_text(f'#!/bin/sh\nexec {python} -c "from {module} import main; main()" "$@"\n')
        script.chmod(0o755)
    dropin = root / f"etc/systemd/system/{UNIT}.d/tree.conf"
    dropin.parent.mkdir(parents=True)
    dropin.write_text(FROM_TREE)
    (root / "etc/behestd/credentials").mkdir(mode=0o700)
    postinst = root / "postinst"
    postinst.write_bytes((ROOT / "deploy/debian/postinst").read_bytes())
    await machine.run("env", "DPKG_MAINTSCRIPT_PACKAGE=behestd", "sh", "/postinst", "configure")


async def _from_package(machine: Machine, package: Path) -> None:
    (machine.root / package.name).write_bytes(package.read_bytes())
    await machine.run("dpkg", "--install", f"/{package.name}")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built from this tree."""
    return deb.build(tmp_path_factory.mktemp("deb"))


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    """A machine with nothing of ours."""
    try:
        async with booted() as made:
            yield made
    except CannotBoot as reason:
        pytest.skip(f"no systemd of its own: {reason}")


@pytest.fixture(params=["tree", pytest.param("package", marks=pytest.mark.proof)])
async def service(request: pytest.FixtureRequest, machine: Machine) -> Service:
    """behestd, started by the installation."""
    if request.param == "tree":
        await _from_tree(machine)
    else:
        await _from_package(machine, request.getfixturevalue("package"))
    await machine.until(UNIT, "ActiveState", "active")
    return Service(machine)


@pytest.fixture
async def packaged(machine: Machine, package: Path) -> Service:
    """behestd from the package."""
    await _from_package(machine, package)
    await machine.until(UNIT, "ActiveState", "active")
    return Service(machine)


async def test_the_service_lives_as_its_unit_says(service: Service) -> None:  # S19, S20
    machine = service.machine
    await machine.until(UNIT, "StatusText", IDLE)
    async with Client(service.address, patience=PATIENCE) as client:
        assert (await (await client.run("hello")).result()).text == "hello"
        _private(machine)

        await machine.run("systemctl", "reload", UNIT)
        await _logged(machine, "configuration reloaded")
        await machine.until(UNIT, "StatusText", IDLE)
        config = machine.root / "etc/behestd/behestd.toml"
        good = config.read_text()
        config.write_text("[server]\nunknown = 1\n")
        await machine.run("systemctl", "reload", UNIT)
        await machine.until(UNIT, "StatusText", f"{IDLE}; not reloaded: the configuration is invalid")
        assert await machine.show(UNIT, "ActiveState") == "active"
        config.write_text(good)

        run = client.stream("/delay 50 /words 60")
        killed = False
        async for _ in run.text():
            if not killed:
                killed = True
                await machine.run("kill", "-KILL", await service.pid())
                await service.started(restarts=1)
        assert (await run.result()).text == words(60)
    await machine.run("systemctl", "stop", UNIT)
    assert await machine.show(UNIT, "ExecMainStatus") == "0"
    assert await machine.show(UNIT, "Result") == "success"
    assert (await machine.run("behestd", "fsck", "--data-dir", "/var/lib/behestd")).startswith("sound")


@pytest.mark.proof
async def test_every_command_of_the_documentation_works(machine: Machine, package: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/deploy.md").read_text(), re.MULTILINE | re.DOTALL)
    script = machine.root / "root/deploy.sh"
    script.parent.mkdir(exist_ok=True)
    (script.parent / package.name).write_bytes(package.read_bytes())
    script.write_text("set -eu\ncd /root\nexport USER=root OPENAI_API_KEY=canary\n" + "".join(blocks))
    told = await machine.run("sh", "/root/deploy.sh")
    assert len(blocks) >= 7
    assert told.count("hello") == 3, told
    assert "sound: store" in told
    assert not (machine.root / "usr/bin/behestd").exists()
    assert (machine.root / "var/lib/private/behestd/behestd.db").exists(), "the data stays"
    assert "canary" not in told + await machine.journal()


@pytest.mark.proof
async def test_systemd_finds_nothing_wrong_with_what_is_installed(packaged: Service) -> None:  # S19
    units = (UNIT, "behestd-proxy.service", "behestd-proxy.socket")
    places = (f"/lib/systemd/system/{unit}" for unit in units)
    assert await packaged.machine.run("systemd-analyze", "verify", *places) == ""
    for page in ("behestd", "behest", "behestd.toml"):
        await packaged.machine.run("man", "--where", page)


@pytest.mark.proof
async def test_a_service_that_hangs_is_killed_and_started_again(packaged: Service) -> None:  # matrix row 74
    service, machine = packaged, packaged.machine
    await _configure(machine, "watchdog", "[Service]\nWatchdogSec=3s\n")
    async with Client(service.address, patience=PATIENCE) as client:
        run = await client.run("/stall")
        await machine.run("kill", "-STOP", await service.pid())
        await service.started(restarts=1)
        await machine.until(UNIT, "StatusText", "serving: 1 live runs, 0 watches")
        await run.cancel(force=True)
    block = 'Environment="BEHEST_FP=loop.block=sleep:60000,after:8,once"'
    await _configure(machine, "watchdog", f"[Service]\nWatchdogSec=3s\n{block}\n")
    await service.started(restarts=1)
    journal = await machine.journal()
    assert "in failpoint" in journal, "the stack of what blocked the loop"
    assert "Fatal Python error: Aborted" in journal
    assert "Watchdog timeout" in journal


@pytest.mark.proof
async def test_hundreds_of_watches_go_on_over_reloads_and_restarts_of_the_service(packaged: Service) -> None:  # N06
    service, machine = packaged, packaged.machine
    await _configure(machine, "drain", "[Service]\nEnvironment=BEHEST__LIMITS__DRAIN_SECONDS=1\n")
    async with following(service.address, runs=100, watches=500, order="/delay 50 /words 400") as crowd:
        await crowd.all_have_begun()
        for _ in range(5):
            await machine.run("systemctl", "reload", UNIT)
        await _logged(machine, "configuration reloaded")
        await machine.run("systemctl", "restart", UNIT)
        await crowd.end()
    check(crowd, words(400))


@pytest.mark.proof
async def test_nobody_is_refused_at_the_lasting_address_while_the_service_restarts(packaged: Service) -> None:
    service, machine = packaged, packaged.machine
    await machine.run("systemctl", "start", "behestd-proxy.socket")
    address = "127.0.0.1:7717"
    ask = ("behest", "run", "--address", address, "hello")
    assert "hello" in await machine.run(*ask)
    knock = (
        f"import socket, time\nfor _ in range(400):\n    socket.create_connection({('127.0.0.1', 7717)}, 30).close()\n"
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(machine.run("python3", "-c", knock + "    time.sleep(0.01)\n"))
        tasks.create_task(machine.run("systemctl", "restart", UNIT))
    assert "hello" in await machine.run(*ask)
    await machine.run("kill", "-KILL", await service.pid())
    assert "hello" in await machine.run(*ask)


@pytest.mark.proof
async def test_metadata_addresses_cannot_be_reached_from_the_service(packaged: Service) -> None:  # S8, S19
    machine = packaged.machine
    await machine.run("ip", "address", "add", "169.254.169.254/32", "dev", "lo")
    connect = "import socket; socket.create_connection(('169.254.169.254', 1), 5)"
    probe = f'[Service]\nExecStartPost=-/usr/bin/python3 -c "{connect}"\n'
    assert "ConnectionRefusedError" in await machine.run("python3", "-c", connect, check=False)
    await _configure(machine, "probe", probe)
    assert "TimeoutError" in await machine.journal(), "the packets are dropped"


async def _configure(machine: Machine, name: str, text: str) -> None:
    """Add to the unit, and restart the service."""
    place = machine.root / f"etc/systemd/system/{UNIT}.d/{name}.conf"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    await machine.run("systemctl", "daemon-reload")
    await machine.run("systemctl", "restart", UNIT)


async def _logged(machine: Machine, text: str) -> None:
    """Wait until the journal has a text."""
    journal = ""
    try:
        async with asyncio.timeout(60):
            while text not in (journal := await machine.journal()):
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise TimeoutError(f"{text!r} is not in {journal}") from None


def _private(machine: Machine) -> None:
    """Nobody else may read what the daemon keeps, nor what it was told."""
    state = machine.root / "var/lib/private/behestd"
    for path in (state, *state.rglob("*")):
        mode = path.stat().st_mode
        assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path
    names = {path.name for path in state.iterdir()}
    assert {"behestd.db", "behestd.db-wal"} <= names
    listener = machine.root / SOCKET.lstrip("/")
    assert stat.S_IMODE(listener.stat().st_mode) == 0o660
    group = (machine.root / "etc/group").read_text().partition("\nbehest:x:")[2].partition(":")[0]
    assert listener.stat().st_gid == int(group)
    config = machine.root / "etc/behestd"
    assert stat.S_IMODE((config / "behestd.toml").stat().st_mode) == 0o640
    assert stat.S_IMODE((config / "credentials").stat().st_mode) == 0o700
