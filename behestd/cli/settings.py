"""`behestd check-config` and `behestd config-example`, and the flags that set settings.

Below: `config.source` and `document`. Neither command imports grpc or opens anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from behestd.cli import exits
from behestd.config import document, json_schema
from behestd.config.source import ConfigInvalid, Configuration, Flag, Origin
from behestd.planning import auth

FLAGS = {
    "listen": ("--listen", "server.listen"),
    "unix": ("--unix", "server.unix"),
    "data_dir": ("--data-dir", "storage.data_dir"),
    "log_format": ("--log-format", "log.format"),
    "log_level": ("--log-level", "log.level"),
    "ready_fd": ("--ready-fd", "server.ready_fd"),
}
"""Parameter → flag and the key that it sets."""


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that every command takes which needs settings."""
    for option in reversed(
        (
            click.option("--config", type=click.Path(path_type=Path), help="TOML file. Without it: none."),
            click.option("--listen", multiple=True, metavar="ADDRESS", help="HOST:PORT or unix:PATH; may be repeated."),
            click.option("--unix", metavar="PATH", help="Unix socket to listen on as well."),
            click.option("--data-dir", metavar="DIR", help="Where runs are kept."),
            click.option("--log-format", type=click.Choice(["auto", "console", "json"]), help="Form of the log."),
            click.option(
                "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least level written."
            ),
            click.option("--ready-fd", type=int, metavar="N", help="Write the first address to it when ready."),
        )
    ):
        command = option(command)
    return command


def origin(config: Path | None, given: dict[str, Any]) -> Origin:
    """Make the origin of a configuration from the flags that were given."""
    flags = []
    for parameter, (name, key) in FLAGS.items():
        value = given.get(parameter)
        if value is None or value == ():
            continue
        if parameter in ("data_dir", "unix"):
            # The shell's working directory is where people mean.
            value = os.path.abspath(value)
        flags.append(Flag(name, key, list(value) if isinstance(value, tuple) else value))
    return Origin(config, dict(os.environ), tuple(flags))


def load_or_exit(source: Origin) -> Configuration:
    """Load, or tell every problem and exit with 78."""
    try:
        return source.load()
    except ConfigInvalid as error:
        refuse(error)


def refuse(error: ConfigInvalid) -> NoReturn:
    """Tell every problem of a configuration and exit with 78."""
    for problem in error.problems:
        click.echo(f"behestd: {problem}", err=True)
    sys.exit(exits.CONFIGURATION)


@click.command("check-config")
@settings_options
def check_config(config: Path | None, **given: Any) -> None:
    """Print the configuration in force as a file of its own, with the source of each value; secrets are masked.

    Exits with 78 when something is wrong.
    """
    configuration = load_or_exit(origin(config, given))
    try:
        auth.check(configuration)
    except ConfigInvalid as error:
        refuse(error)
    for entry in configuration.effective():
        if entry.value is None:
            click.echo(f"# {entry.key} is unset")
        else:
            click.echo(f"{entry.key} = {document.toml(entry.value)}  # {entry.source}")


@click.command("config-example")
@click.option("--markdown", is_flag=True, help="Print the reference, docs/configuration.md, instead.")
@click.option("--json-schema", "as_schema", is_flag=True, help="Print the JSON Schema of the file instead.")
def config_example(markdown: bool, as_schema: bool) -> None:
    """Print a file with every setting, its meaning and its default, all commented out."""
    if as_schema:
        click.echo(json_schema.written(), nl=False)
    else:
        click.echo(document.markdown() if markdown else document.example(), nl=False)
