"""Reads the graph that an argument of a command names: a file in JSON or TOML, - for stdin.

Above: the commands that take graphs. Below: `behest.graphs`, which knows the two forms.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from behest import graphs

if TYPE_CHECKING:
    from behest.v1 import graph_pb2


def is_file(name: str) -> bool:
    """Return whether an argument names a file rather than what is kept: by its ending, or since it is there."""
    return name == "-" or name.endswith((".json", ".toml")) or Path(name).is_file()


def read_graph(name: str) -> graph_pb2.Graph:
    """Return the graph in a file. Raises click.ClickException when it is not there or holds none."""
    try:
        with click.open_file(name, encoding="utf-8") as file:
            text = file.read()
        return graphs.read(text, _form(name, text))
    except (OSError, ValueError) as exc:
        where = "stdin" if name == "-" else name
        raise click.ClickException(f"{where}: {exc.strerror if isinstance(exc, OSError) else exc}") from exc


def _form(name: str, text: str) -> graphs.Form:
    """Return the form of a file by its ending; without one, by how it begins."""
    if name.endswith((".json", ".toml")):
        return graphs.form_of(name)
    return "json" if text.lstrip().startswith("{") else "toml"
