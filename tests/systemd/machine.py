"""A real systemd for tests: booted in namespaces of its own over an overlay of this machine's root, and ended for sure.

Above: the tests of the unit and of the package. It has its own processes, mounts, loopback network and control groups;
its files are those of this machine, and what it writes is gone with it. The end of its first process is the end of
all of it, and the kernel brings that about when the test's own process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).resolve().parents[2]
SHOWN = Path("/srv/behest")
"""Where this repository is inside, where it cannot be written: services do not see the places where it may be."""
SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("setpriv", "unshare", "nsenter", "pivot_root", "systemctl", "journalctl", "deb-systemd-invoke")
CONFINED = (
    *("--property=DynamicUser=yes", "--property=PrivateUsers=yes", "--property=ProtectSystem=strict"),
    *("--property=PrivateDevices=yes", "--property=ProcSubset=pid", "--property=SystemCallFilter=@system-service"),
)
"""What the unit asks of the kernel; where a container refuses it, nothing can be said about the unit."""
BOOT_SECONDS = 40.0
COMMAND_SECONDS = 180.0
SETTLED = frozenset({"running", "degraded"})


class CannotBoot(Exception):
    """Raised when this machine cannot have a systemd of its own: its text says why."""


class Failed(AssertionError):
    """Raised when a command inside ends with a code that is not 0."""


class Machine:
    """A systemd that runs. Made by `booted`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    @property
    def root(self) -> Path:
        """Its root directory, as seen from outside."""
        return Path(f"/proc/{self._pid}/root")

    async def run(self, *command: str, check: bool = True) -> str:
        """Run a command inside and return what it wrote on both channels. Raises Failed."""
        process = await asyncio.create_subprocess_exec(
            *("nsenter", "--target", str(self._pid), "--all", "--root", "env", "--chdir=/", "-i"),
            *("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "SYSTEMD_PAGER=cat", *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = output.decode(errors="replace")
        if check and process.returncode:
            raise Failed(f"{' '.join(command)} ended with {process.returncode}:\n{text}{await self.journal()}")
        return text

    def open_to_services(self, *paths: Path) -> None:
        """Let every user inside reach directories of this machine."""
        for parent in {parent for path in paths for parent in path.parents}:
            place = self.root / parent.relative_to("/")
            if place.stat().st_mode & 0o111 != 0o111:
                place.chmod(place.stat().st_mode | 0o111)

    async def journal(self) -> str:
        """Return the newest lines of its journal."""
        return await self.run("journalctl", "--no-pager", "--lines=200", "--output=cat", check=False)

    async def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return (await self.run("systemctl", "show", unit, f"--property={name}", "--value")).strip()

    async def until(self, unit: str, name: str, *values: str) -> str:
        """Wait until a property of a unit has one of the values. Raises TimeoutError, with the journal."""
        value = ""
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                while (value := await self.show(unit, name)) not in values:
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise TimeoutError(f"{unit}: {name}={value}, not {values}\n{await self.journal()}") from None
        return value


def _cgroups() -> Path:
    """Return where the one hierarchy of control groups is mounted. Raises CannotBoot."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2":
            if "rw" not in options.split(","):
                raise CannotBoot(f"{place} is read-only")
            return Path(place)
    raise CannotBoot("cgroup2 is not mounted")


def _remove_cgroups(place: Path) -> None:
    """Remove control groups that nobody is in any more; the kernel needs a moment to see that."""
    deadline = time.monotonic() + 10
    while place.exists() and time.monotonic() < deadline:
        for directory, _, _ in sorted(os.walk(place), reverse=True):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
        time.sleep(0.02)


@asynccontextmanager
async def booted() -> AsyncIterator[Machine]:
    """Boot a systemd, and end it and everything in it. Raises CannotBoot."""
    if os.geteuid() != 0:
        raise CannotBoot("only root can make the namespaces that a systemd of its own needs")
    missing = [str(SYSTEMD)] if not SYSTEMD.exists() else []
    missing += [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise CannotBoot(f"{', '.join(missing)} not found")
    cgroups = _cgroups()
    work = Path(mkdtemp(prefix="behest-systemd-"))
    cgroup = cgroups / work.name
    process: subprocess.Popen[bytes] | None = None
    log = (work.parent / f"{work.name}.log").open("w+b")
    try:
        try:
            cgroup.mkdir()
        except OSError as error:
            raise CannotBoot(f"{cgroup}: {error.strerror}") from None
        # Into the control group first, so that it is the root of what the namespace shows.
        command = f'echo $$ >"{cgroup}/cgroup.procs" && exec unshare --pid --mount --uts --ipc --cgroup --net --fork '
        command += f'--kill-child "{Path(__file__).with_name("boot.sh")}" "{work}" "{ROOT}" "{SHOWN}"'
        process = subprocess.Popen(  # noqa: ASYNC220  the kernel ends it with this very thread
            ["setpriv", "--pdeathsig", "KILL", "sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        pid = await _first(process, log.name)
        machine = Machine(pid)
        await _settled(machine, process, log.name)
        try:
            await machine.run("systemd-run", "--wait", "--quiet", *CONFINED, "/bin/true")
        except Failed as error:
            raise CannotBoot(f"its services cannot be confined: {error}") from None
        yield machine
    finally:
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
        log.close()
        Path(log.name).unlink()
        _remove_cgroups(cgroup)
        work.rmdir()


async def _first(process: subprocess.Popen[bytes], log: str) -> int:
    """Return the pid of the first process in the namespaces, once it is systemd."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        async with asyncio.timeout(BOOT_SECONDS):
            while process.poll() is None:
                with contextlib.suppress(OSError):
                    for child in children.read_text().split():
                        if Path(f"/proc/{child}/exe").readlink().name == SYSTEMD.name:
                            return int(child)
                await asyncio.sleep(0.02)
    except TimeoutError:
        pass
    raise CannotBoot(f"no systemd came up: {Path(log).read_text(errors='replace').strip()[-400:]}")


async def _settled(machine: Machine, process: subprocess.Popen[bytes], log: str) -> None:
    """Wait until it has reached its target."""
    state = ""
    try:
        async with asyncio.timeout(BOOT_SECONDS):
            while process.poll() is None and state not in SETTLED:
                await asyncio.sleep(0.05)
                state = (await machine.run("systemctl", "is-system-running", check=False)).strip()
    except TimeoutError:
        pass
    if state not in SETTLED:
        raise CannotBoot(f"systemd is {state}: {Path(log).read_text(errors='replace').strip()[-400:]}")
