"""`behestd version`."""

from __future__ import annotations

import click

from behestd import __version__


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"behestd {__version__}")
