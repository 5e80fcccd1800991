"""`behest doctor`: checks a set-up from where its users are, and says what to mend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from behest.cli.command import Exit, connected
from behest.cli.doctor_checks import FAIL, OK, WARN, Check, reached, unreached
from behest.errors import BehestError

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client

_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}


@click.command()
@connected
async def doctor(client: Client, out: Output) -> Exit | None:
    """Check the daemon, its storage, models and servers, and how this client reaches it.

    Exits with 1 when a check fails; a warning is no failure.
    """
    try:
        checks = await reached(client)
    except BehestError as error:
        checks = [unreached(client.address, error)]
    has_failed = any(check.outcome == FAIL for check in checks)
    if out.is_json:
        out.line({"ok": not has_failed, "checks": [check.as_dict() for check in checks]})
    else:
        for check in checks:
            show(check)
    return Exit.FAILED if has_failed else None


def show(check: Check) -> None:
    """Print one check, and what to do about it."""
    click.echo(f"{click.style(check.outcome.ljust(4), fg=_COLOURS[check.outcome])}  {check.name}: {check.found}")
    if check.remedy:
        click.echo(f"      {check.remedy}")
