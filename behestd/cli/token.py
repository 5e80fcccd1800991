"""`behestd token new`: a bearer token for its owner, and for the configuration what knows it again.

Below: `service.credentials`. Nothing is kept and nothing else is opened: the token is on stderr, or in a file of its
owner's, and what belongs into the configuration is on stdout, so that it can be appended to a file.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from pydantic import ValidationError

from behestd.config.auth import Token
from behestd.config.document import toml
from behestd.service.credentials import NewToken, new_token

_DAYS = re.compile(r"([1-9][0-9]{0,4})d")


@click.group()
def token() -> None:
    """Make bearer tokens."""


@token.command("new")
@click.option("--principal", required=True, metavar="NAME", help="Who will show it.")
@click.option("--namespace", default="default", show_default=True, metavar="NAME", help="Where it may look.")
@click.option("--role", default="", metavar="ROLE", help="reader, user, approver, operator, tool_server, admin or own.")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="A scope beside the role's; may be repeated.")
@click.option("--expires", metavar="TIME", help="When it ends: 90d, or 2027-01-31T00:00:00Z. Default: never.")
@click.option("--token-file", type=click.Path(path_type=Path), help="Write the token to a new file instead of stderr.")
def new(
    principal: str, namespace: str, role: str, scopes: tuple[str, ...], expires: str | None, token_file: Path | None
) -> None:
    """Make a token. It is shown once, on stderr; its entry for the configuration is on stdout, without it."""
    made = new_token()
    entry: dict[str, object] = {
        "id": made.token_id,
        "hash": made.stored,
        "principal": principal,
        "namespace": namespace,
    }
    given = {"role": role, "scopes": scopes, "expires": _moment(expires)}
    entry |= {key: value for key, value in given.items() if value}
    try:
        Token.model_validate(entry)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[0]
        place = f"{details['loc'][0]}: " if details["loc"] else ""
        raise click.UsageError(place + str(details["msg"]).removeprefix("Value error, ")) from None
    _hand_over(made, token_file)
    click.echo("[[auth.tokens]]")
    for key, value in entry.items():
        click.echo(f"{key} = {toml(value)}")


def _hand_over(made: NewToken, path: Path | None) -> None:
    if path is None:
        click.echo(f"token, shown only now: {made.text}", err=True)
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise click.UsageError(f"{path} cannot be made: {error.strerror}") from None
    with open(descriptor, "w") as file:
        file.write(f"{made.text}\n")


def _moment(text: str | None) -> str:
    """Return a time, or one so many days from now, to the second."""
    days = _DAYS.fullmatch(text or "")
    if days is None:
        return text or ""
    return (datetime.now(UTC) + timedelta(days=int(days[1]))).replace(microsecond=0).isoformat()
