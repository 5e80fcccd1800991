"""`behestd audit`: reads and verifies the audit log of a data directory, beside a daemon or without one."""

from __future__ import annotations

import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from behestd.cli import exits
from behestd.config.source import data_dir as default_data_dir
from behestd.log import audit as log
from behestd.log.audit import Broken

_AGO = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@click.command()
@click.option("--data-dir", metavar="DIR", help="The data directory. Default: where `serve` keeps it.")
@click.option("--verify", is_flag=True, help="Check the chain, and print nothing of the rows.")
@click.option(
    "--since", metavar="TIME", help="Rows from a time on, as 2026-01-31T12:00:00Z, or ago, as 90m, 12h or 7d."
)
@click.option("--principal", help="Rows of this principal.")
@click.option("--method", help="Rows whose method holds this text, as DaemonService/SetPaused.")
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form.")
def audit(
    data_dir: str | None,
    *,
    verify: bool,
    since: str | None,
    principal: str | None,
    method: str | None,
    output: str,
) -> None:
    """Print who changed what, oldest first, one row a line.

    Exits with 65 when the log is not what was written: a row was changed, moved or taken out, or the end is missing.
    """
    directory = Path(data_dir or default_data_dir(os.environ)[0]) / log.DIRECTORY
    if not directory.is_dir():
        click.echo(f"behestd: there is no audit log in {directory}", err=True)
        sys.exit(exits.CONFIGURATION)
    if not verify:
        earliest = _time(since)
        for body, _ in log.rows(directory):
            told = str(body.get("time", "")) >= earliest and principal in (None, body.get("principal"))
            if body and told and (method or "") in str(body.get("method", "")):
                click.echo(json.dumps(body) if output == "json" else _line(body))
    try:
        count = log.verify(directory)
    except Broken as error:
        click.echo(f"behestd: {error}", err=True)
        sys.exit(exits.CORRUPT)
    if verify:
        click.echo(json.dumps({"rows": count, "sound": True}) if output == "json" else f"sound: {count} rows")


def _time(text: str | None) -> str:
    """The time from which on rows are wanted, as rows write it. Raises click.BadParameter."""
    if text is None:
        return ""
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            since = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            since = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text} is neither a time nor how long ago", param_hint="--since") from None
    return f"{since.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def _line(body: dict[str, Any]) -> str:
    """A row as people read it. What clients named themselves is shown with its control characters escaped."""
    targets = " ".join(f"{key}={json.dumps(value)}" for key, value in dict(body["targets"]).items())
    outcome = f"{body['code']}/{body['reason']}" if body["reason"] else str(body["code"])
    who = json.dumps(f"{body['principal']}@{body['namespace']}")[1:-1] if body["principal"] else "-"
    return f"{body['time']} {body['method']} {outcome} {who} {targets}".rstrip()
