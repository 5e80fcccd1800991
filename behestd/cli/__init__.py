"""`behestd`, the command line of the daemon: the table of its commands, each loaded when it is named.

Above: people, scripts and the service manager. Below: a file a command. Guarantees the exit codes of `exits`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

import click


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command is defined, and what it does in one sentence."""

    module: str
    attribute: str
    help: str


PLACES: Mapping[str, Place] = {
    "serve": Place("behestd.cli.serve", "serve", "Run the daemon in the foreground."),
    "check-config": Place("behestd.cli.settings", "check_config", "Print the configuration in force and its sources."),
    "config-example": Place("behestd.cli.settings", "config_example", "Print a file with every setting."),
    "token": Place("behestd.cli.token", "token", "Make bearer tokens."),
    "fsck": Place("behestd.cli.fsck", "fsck", "Check a data directory, and mend its views if told to."),
    "backup": Place("behestd.cli.backup", "backup", "Copy a data directory while the daemon works."),
    "restore": Place("behestd.cli.backup", "restore", "Make a data directory from a backup."),
    "purge": Place("behestd.cli.purge", "purge", "Delete for good, and wipe what was deleted."),
    "audit": Place("behestd.cli.audit", "audit", "Read and verify the audit log."),
    "version": Place("behestd.cli.version", "version", "Print the version."),
}
HELP = "A gRPC runtime daemon for agents."
EPILOG = (
    "Exit: 0 stopped, 1 unexpected, 2 wrong usage, 65 data corrupt, 69 address or data directory in use, "
    "70 store failed, 78 configuration."
)


class Commands(click.Group):
    """Loads a command when it is called, so that help does not wait for grpc."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command; None when there is none of the name."""
        place = PLACES.get(cmd_name)
        if place is None:
            return None
        command: click.Command = getattr(import_module(place.module), place.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.help) for name, place in PLACES.items()])


def main() -> None:
    """Run the command that the arguments name, and exit."""
    # Below errors grpc writes a line for each handshake that fails, and strangers would fill our log with them. It
    # reads this once, when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    Commands(name="behestd", help=HELP, epilog=EPILOG).main(prog_name="behestd")
