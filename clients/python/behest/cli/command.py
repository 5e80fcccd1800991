"""What every command has in common: it connects, prints in one of two forms, and ends with an exit code.

Above: the commands. Below: `behest.client` and `show`.
"""

from __future__ import annotations

import asyncio
import functools
import os
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from behest.calls import Patience
from behest.channel import default_address
from behest.cli.show import Output
from behest.cli.tls import of_daemon, to_daemon
from behest.client import Client
from behest.errors import BehestError, RunCancelledError, RunTimedOutError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from behest.cli.tls import Access

P = ParamSpec("P")

# Somebody waits at the prompt: a daemon that is not there is told soon, one that is restarted is waited for.
PATIENCE = Patience(repeat_seconds=2.0, watch_seconds=60.0)


class Exit(IntEnum):
    """The exit codes. Wrong usage is 2, given by click."""

    DONE = 0
    FAILED = 1
    STOPPED = 3
    UNREACHABLE = 4
    # As shells say it of a process that an interrupt ended.
    LEFT = 130


def exit_code(error: BehestError) -> Exit:
    """Return the exit code for an error."""
    if isinstance(error, RunCancelledError | RunTimedOutError):
        return Exit.STOPPED
    if isinstance(error, UnreachableError) or error.reason == "TRANSPORT_DEADLINE":
        return Exit.UNREACHABLE
    return Exit.FAILED


def reported(error: BehestError, client: Client, out: Output) -> Exit:
    """Print what went wrong, and return the exit code for it."""
    out.error(error)
    code = exit_code(error)
    if code is Exit.UNREACHABLE:
        out.note(f"is a behestd listening on {client.address}?")
    return code


def connected(body: Callable[Concatenate[Client, Output, P], Awaitable[Exit | None]]) -> Callable[..., None]:
    """Make a command of a coroutine that takes a client and an output: adds how to reach a daemon, and --output."""

    async def carried_out(address: str, access: Access, out: Output, arguments: dict[str, Any]) -> Exit:
        async with Client(address, token=access.token, tls=access.tls, patience=PATIENCE) as client:
            try:
                return await body(client, out, **arguments) or Exit.DONE  # type: ignore[call-arg]
            except BehestError as error:
                return reported(error, client, out)

    @click.option("--address", metavar="ADDRESS", help="Where the daemon listens. Default: BEHEST_ADDRESS.")
    @to_daemon
    @click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form.")
    @functools.wraps(body)
    def command(*, address: str | None, output: str, **arguments: Any) -> None:
        # What grpc logs by itself says nothing that the error does not say.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        where, access = address or default_address(), of_daemon(arguments)
        access.check(where)
        out = Output(is_json=output == "json")
        click.get_current_context().exit(asyncio.run(carried_out(where, access, out, arguments)))

    return command


def pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """Return KEY=VALUE arguments as a dictionary. Raises click.BadParameter."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{text} is not KEY=VALUE")
        found[key] = value
    return found
