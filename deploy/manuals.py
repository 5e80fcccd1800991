"""The manual pages behestd(8), behest(1) and behestd.toml(5), written from the commands and the reference themselves.

Above: `deb`, and `make manuals`. Below: the click commands of both programs, and `config.document`. What a page says
about a command is what its `--help` says, so neither can grow old alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

import behest.cli
import behestd.cli
from behest.cli.lazy import LazyGroup
from behestd import __version__
from behestd.config import document

FILES_OF_DAEMON = """\
.TP
.I /etc/behestd/behestd.toml
The configuration of the packaged service; see
.BR behestd.toml (5).
.TP
.I /etc/behestd/credentials/
Secrets of the packaged service, one a file, of root and mode 0600. The file NAME is credential:key_NAME.
.TP
.I /run/behestd/behestd.sock
Where the packaged service listens. Members of the group behest may connect.
.TP
.I /var/lib/behestd
What the packaged service keeps.
"""
SIGNALS = """\
.TP
.B SIGTERM\\fR, \\fBSIGINT
Drain, then end with 0. A second one ends the drain at once; what was in flight is taken up at the next start.
.TP
.B SIGHUP
Read the configuration anew. When something is wrong with it, the old one stays in force.
"""
ENVIRONMENT_OF_DAEMON = """\
.TP
.B BEHEST__SECTION__KEY
Sets a key of the configuration, over the file and below the flags.
.TP
.B STATE_DIRECTORY\\fR, \\fBXDG_STATE_HOME
Where the data directory is by default.
.TP
.B CREDENTIALS_DIRECTORY
Where secrets named credential:NAME are; systemd sets it.
.TP
.B NOTIFY_SOCKET\\fR, \\fBWATCHDOG_USEC\\fR, \\fBWATCHDOG_PID
Where signs of life go, and how often; systemd sets them.
"""
ENVIRONMENT_OF_CLIENT = """\
.TP
.B BEHEST_ADDRESS
Where the daemon listens, HOST:PORT or unix:PATH. Default: 127.0.0.1:7717.
"""


def pages() -> dict[str, str]:
    """Write every page, by file name."""
    daemon = behestd.cli.Commands(name="behestd", help=behestd.cli.HELP, epilog=behestd.cli.EPILOG)
    client = LazyGroup(behest.cli.PLACES, name="behest", help=behest.cli.HELP, epilog=behest.cli.EPILOG)
    after_daemon = {"SIGNALS": SIGNALS, "ENVIRONMENT": ENVIRONMENT_OF_DAEMON, "FILES": FILES_OF_DAEMON}
    return {
        "behestd.8": _program(daemon, 8, "behest (1), behestd.toml (5)", after_daemon),
        "behest.1": _program(client, 1, "behestd (8)", {"ENVIRONMENT": ENVIRONMENT_OF_CLIENT}),
        "behestd.toml.5": _reference(document.example()),
    }


def _program(group: click.Group, section: int, others: str, sections: dict[str, str]) -> str:
    name = str(group.name)
    help_text = str(group.help)
    context = click.Context(group, info_name=name)
    lines = [_title(name, section), ".SH NAME", f"{name} \\- {_text(_sentence(help_text))}", ".SH SYNOPSIS"]
    lines += [f".B {name}", ".I COMMAND", "[\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]...", ".SH DESCRIPTION"]
    lines += [*_prose(help_text), ".SH COMMANDS"]
    for path, command in _commands(group, context):
        lines += _command(path, command)
    for title, text in sections.items():
        lines += [f".SH {title}", text.rstrip("\n")]
    lines += [".SH EXIT STATUS", *_prose(str(group.epilog).removeprefix("Exit: ")), ".SH SEE ALSO"]
    return "\n".join([*lines, *_references(others)]) + "\n"


def _commands(group: click.Group, context: click.Context) -> Iterator[tuple[click.Context, click.Command]]:
    """Yield every command that does something, with the context that knows its full name."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
        else:
            yield inner, command


def _command(context: click.Context, command: click.Command) -> list[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f".SS {_text(context.command_path)} {_text(usage)}", *_prose(command.help or "")]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            lines += [".TP", f".B {_text(record[0])}", _text(record[1]) or "\\&"]
    return lines


def _reference(example: str) -> str:
    """Turn the commented file into a page: a heading a table, a paragraph a key."""
    lines = [_title("behestd.toml", 5), ".SH NAME", "behestd.toml \\- configuration of behestd", ".SH DESCRIPTION"]
    head, _, tables = example.partition("\n\n")
    lines += [*_prose(head.replace("# ", "")), ".SH TABLES"]
    prose: list[str] = []
    for line in tables.splitlines():
        bare = line.removeprefix("#")
        if line.startswith("# ") and not line.endswith(" is unset."):
            prose.append(line.removeprefix("# "))
        elif bare.startswith("["):
            lines += [f".SS {_text(bare)}", *_prose(" ".join(prose))]
            prose = []
        elif line:
            lines += [".TP", f".B {_text(bare.strip())}", *(_prose(" ".join(prose)) or ["\\&"])]
            prose = []
    return "\n".join([*lines, ".SH SEE ALSO", *_references("behestd (8)")]) + "\n"


def _title(name: str, section: int) -> str:
    # Without a date the same source gives the same page.
    return f'.TH "{name.upper()}" "{section}" "" "behest {__version__}"'


def _sentence(text: str) -> str:
    first = text.strip().split("\n\n")[0].replace("\n", " ").rstrip(".")
    return first[0].lower() + first[1:] if first[1:2].islower() or first[1:2] == " " else first


def _references(others: str) -> list[str]:
    return [f".BR {other}," for other in others.split(", ")[:-1]] + [f".BR {others.split(', ')[-1]}"]


def _prose(text: str) -> list[str]:
    """Write paragraphs; click's mark for one that is not to be filled is obeyed."""
    lines: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        if paragraph.startswith("\b"):
            lines += [".nf", *(_text(line) for line in paragraph.splitlines()[1:]), ".fi"]
        elif paragraph:
            lines += [*([".PP"] if lines else []), _text(paragraph.replace("\n", " "))]
    return lines


def _text(text: str) -> str:
    """Escape what troff would take for its own."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("\b", "").strip()
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def write(directory: Path) -> None:
    """Write every page into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
