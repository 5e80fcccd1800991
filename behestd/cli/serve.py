"""`behestd serve`: from settings to a daemon, and from its end to an exit code.

Above: people and systemd. Below: `planning`, `daemon`, `telemetry`. Tells that it is ready in three ways: a line on
stderr, the first address on `--ready-fd`, and READY=1 to systemd.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import structlog
import uvloop

from behestd import __version__
from behestd.cli import exits
from behestd.cli.settings import load_or_exit, origin, refuse, settings_options
from behestd.config.source import ConfigInvalid, Configuration, Origin
from behestd.daemon import serve as serve_plan
from behestd.notify import ServiceManager
from behestd.planning import again
from behestd.telemetry.logs import Logs

logger = structlog.get_logger(__name__)


@click.command()
@settings_options
def serve(config: Path | None, **given: Any) -> None:
    """Run the daemon in the foreground until SIGTERM or SIGINT; a second one ends the drain at once.

    SIGHUP reads the configuration again.
    """
    os.umask(0o077)
    source = origin(config, given)
    configuration = load_or_exit(source)
    ready_fd = configuration.settings.server.ready_fd
    if ready_fd is not None:
        try:
            os.fstat(ready_fd)
        except OSError:
            refuse(configuration.invalid(("server", "ready_fd"), f"descriptor {ready_fd} is not open"))
    log = configuration.settings.log
    shape = log.format if log.format != "auto" else "console" if sys.stderr.isatty() else "json"
    with Logs(format=shape, level=log.level) as lines:
        code = _run(source, configuration, lines)
    sys.exit(code)


def _run(source: Origin, configuration: Configuration, lines: Logs) -> int:
    """Serve and return the exit code; what is unexpected is raised."""
    settings = configuration.settings
    logger.info("starting behestd", version=__version__, storage=settings.storage.kind, pid=os.getpid())
    manager = ServiceManager.from_environment(os.environ, os.getpid())

    def ready(addresses: Sequence[str]) -> None:
        lines.line(f"ready address={','.join(addresses)} in {process_age_seconds():.2f}s")
        _write_address(settings.server.ready_fd, addresses)
        manager.ready(f"serving on {', '.join(addresses)}")

    try:
        # uvloop: an eighth more runs a second than the standard library's loop (docs/decisions/0006).
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            plan = replace(again.plan(configuration, source), logs=lines)
            code = runner.run(serve_plan(plan, ready, manager))
    except asyncio.CancelledError:
        # A second signal: what was in flight is taken up at the next start.
        code = 0
    except exits.KNOWN as error:
        found = exits.code_of(error)
        if found is None:
            raise
        code = found[0]
        _tell(lines, found[1])
    logger.info("stopped", code=code)
    return code


def _tell(lines: Logs, error: BaseException) -> None:
    problems = error.problems if isinstance(error, ConfigInvalid) else (error,)
    for problem in problems:
        lines.line(f"behestd: {problem}")


def _write_address(descriptor: int | None, addresses: Sequence[str]) -> None:
    """Write the first address for a script that waits for it, and close the descriptor."""
    if descriptor is None:
        return
    # A script that has gone away needs no address.
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{addresses[0]}\n".encode())
    if descriptor > 2:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def process_age_seconds() -> float:
    """Return how long ago this process was started, by the kernel's count (proc(5), starttime)."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
