"""`behestd fsck`: checks a data directory, beside a daemon or without one, and mends its views when it is told to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from behestd.cli import exits
from behestd.cli.ownership import kept
from behestd.config.source import data_dir as default_data_dir
from behestd.errors import BehestError
from behestd.log import fsck as checker


@click.command()
@click.option("--data-dir", metavar="DIR", help="The data directory. Default: where `serve` keeps it.")
@click.option("--quick", is_flag=True, help="Check pages and logs only, neither views nor the content of artifacts.")
@click.option("--rebuild", is_flag=True, help="First write views anew that are not what the logs come to.")
def fsck(data_dir: str | None, *, quick: bool, rebuild: bool) -> None:
    """Check the store, the log of every run, the views made of them, and the content of artifacts.

    Exits with 65 when something is damaged. Nothing is changed but by --rebuild, for which the daemon must be stopped.
    """
    place = Path(data_dir or default_data_dir(os.environ)[0])
    try:
        if rebuild:
            with kept(place):
                click.echo(f"rebuilt the views of {checker.rebuild(place)} runs")
        report = checker.check(place) if quick else checker.check_all(place)
    except (BehestError, OSError) as error:
        click.echo(f"behestd: {error}", err=True)
        found = exits.code_of(error)
        sys.exit(found[0] if found is not None else exits.CONFIGURATION)
    for problem in report.problems:
        click.echo(problem)
    verdict = f"{len(report.problems)} problems" if report.problems else "sound"
    click.echo(f"{verdict}: store {report.store_id}, {report.runs} runs, {report.events} events in {place}")
    if report.dangling_blobs:
        click.echo(f"{report.dangling_blobs} contents that nothing names; the daemon deletes them when they are old")
    if report.problems:
        sys.exit(exits.CORRUPT)
