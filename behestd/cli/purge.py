"""`behestd purge`: deletes sessions and runs of a stopped daemon, and wipes what deletions left in its files."""

from __future__ import annotations

import asyncio
import os
import pwd
import time
from pathlib import Path

import click

from behestd.cli.backup import attempt
from behestd.cli.ownership import kept
from behestd.config.source import data_dir as default_data_dir
from behestd.log import purge as purging
from behestd.log.audit import Row
from behestd.log.audit_writer import append_now


@click.command()
@click.option("--data-dir", metavar="DIR", help="The data directory. Default: where `serve` keeps it.")
@click.option("--namespace", default="default", show_default=True, help="Namespace of the sessions and runs.")
@click.option("--session", "sessions", multiple=True, metavar="SESSION", help="Session to delete; may be repeated.")
@click.option("--run", "runs", multiple=True, metavar="RUN", help="Run to delete; may be repeated.")
def purge(data_dir: str | None, namespace: str, sessions: tuple[str, ...], runs: tuple[str, ...]) -> None:
    """Delete what is named, and rewrite the files so that nothing of what was ever deleted is left in them.

    The daemon must be stopped. It needs as much free space as the store has bytes.
    """
    place = Path(data_dir or default_data_dir(os.environ)[0])
    with kept(place):
        done = attempt(lambda: asyncio.run(purging.purge(place, namespace, sessions, runs)))
        targets = {"sessions": ",".join(sessions), "runs": ",".join(runs)}
        row = Row(time.time_ns(), "behestd:purge", principal=_user(), namespace=namespace, targets=targets)
        attempt(lambda: append_now(place, row))
    click.echo(f"deleted {done.sessions} sessions, {done.runs} runs and {done.blobs} contents; {place} is wiped")


def _user() -> str:
    """Who the operating system says this is, for the audit."""
    try:
        return f"os:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"os:{os.getuid()}"
