"""`behestd fsck`: checks a data directory, beside a daemon or without one, and changes nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from behestd.cli import exits
from behestd.config.source import data_dir as default_data_dir
from behestd.errors import BehestError
from behestd.log import fsck as checker


@click.command()
@click.option("--data-dir", metavar="DIR", help="The data directory. Default: where `serve` keeps it.")
def fsck(data_dir: str | None) -> None:
    """Check the store and the log of every run. Exits with 65 when something is damaged; nothing is repaired."""
    place = Path(data_dir or default_data_dir(os.environ)[0])
    try:
        report = checker.check(place)
    except (BehestError, OSError) as error:
        click.echo(f"behestd: {error}", err=True)
        sys.exit(exits.CONFIGURATION)
    for problem in report.problems:
        click.echo(problem)
    verdict = f"{len(report.problems)} problems" if report.problems else "sound"
    click.echo(f"{verdict}: store {report.store_id}, {report.runs} runs, {report.events} events in {place}")
    if report.problems:
        sys.exit(exits.CORRUPT)
