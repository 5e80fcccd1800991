"""`behestd backup` and `behestd restore`: a copy of a data directory beside a working daemon, and back from it."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from behestd.cli import exits
from behestd.config.source import data_dir as default_data_dir
from behestd.errors import BehestError
from behestd.log import backup as copies

_Result = TypeVar("_Result")
_PATH = click.Path(path_type=Path)


def attempt(work: Callable[[], _Result]) -> _Result:
    """Do something with a data directory; what stands in the way is told, and is the exit code."""
    try:
        return work()
    except (BehestError, OSError, sqlite3.Error) as error:
        click.echo(f"behestd: {error}", err=True)
        found = exits.code_of(error)
        sys.exit(found[0] if found is not None else exits.STORE_FAILED)


@click.command()
@click.argument("place", metavar="DEST", type=_PATH)
@click.option("--data-dir", metavar="DIR", help="The data directory. Default: where `serve` keeps it.")
def backup(place: Path, data_dir: str | None) -> None:
    """Copy the data directory to DEST, a new directory, while the daemon works, and check the copy."""
    source = Path(data_dir or default_data_dir(os.environ)[0])
    made = attempt(lambda: copies.backup(source, place.absolute()))
    click.echo(f"backed up {made.runs} runs, {made.events} events and {made.blobs} contents to {place}")


@click.command()
@click.argument("place", metavar="SRC", type=_PATH)
@click.option("--data-dir", metavar="DIR", required=True, help="The new data directory; it must not exist or be empty.")
def restore(place: Path, data_dir: str) -> None:
    """Make a data directory from the backup in SRC, after checking all of it."""
    made = attempt(lambda: copies.restore(place.absolute(), Path(data_dir).absolute()))
    click.echo(f"restored {made.runs} runs, {made.events} events and {made.blobs} contents to {data_dir}")
