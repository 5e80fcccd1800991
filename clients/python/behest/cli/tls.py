"""Tokens and TLS at the command line: the options of both ends, and what they stand for.

Above: the commands that connect to a daemon, or listen. Certificates, keys and tokens are files, read once; a token may
also be in the environment, but never on the command line, where everybody on the machine could read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import grpc

from behest.channel import default_token
from behest.security import Tls, check_token

if TYPE_CHECKING:
    from collections.abc import Callable

_FILE = click.File("rb")


def to_daemon(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a connection to a daemon."""
    for option in (
        click.option("--token-file", type=_FILE, help="File that holds the token. Default: BEHEST_TOKEN."),
        click.option("--key", type=_FILE, envvar="BEHEST_KEY", help="The key of that certificate. Or BEHEST_KEY."),
        click.option(
            "--cert",
            type=_FILE,
            envvar="BEHEST_CERT",
            help="Certificate to show to the daemon. Implies --tls. Or BEHEST_CERT.",
        ),
        click.option(
            "--ca",
            type=_FILE,
            envvar="BEHEST_CA",
            help="Authorities that may sign the daemon's certificate. Implies --tls. Or BEHEST_CA.",
        ),
        click.option("--tls", is_flag=True, envvar="BEHEST_TLS", help="Connect with TLS. Default: plaintext."),
    ):
        command = option(command)
    return command


def to_listen(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of listening for daemons."""
    for option in (
        click.option("--listen-ca", type=_FILE, help="Authorities of the certificate that daemons must show."),
        click.option("--listen-key", type=_FILE, help="The key of that certificate."),
        click.option("--listen-cert", type=_FILE, help="Certificate to listen with. Default: plaintext."),
    ):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Access:
    """How a daemon is reached: what the client shows, and whom it believes."""

    token: str = field(repr=False)
    tls: Tls | None

    def check(self, address: str) -> None:
        """See that the token may be sent to an address. Raises UsageError."""
        try:
            check_token(self.token, address, has_tls=self.tls is not None)
        except ValueError as error:
            raise click.UsageError(str(error)) from None


def of_daemon(options: dict[str, Any]) -> Access:
    """Take the options of `to_daemon` out, and return what they say. Raises UsageError."""
    is_asked, ca, cert, key, token = (options.pop(name) for name in ("tls", "ca", "cert", "key", "token_file"))
    _check_pair(cert, key, "--cert", "--key")
    shown = default_token() if token is None else token.read().decode(errors="replace").strip()
    if not (is_asked or ca or cert):
        return Access(shown, None)
    return Access(shown, Tls(_read(ca), _read(cert), _read(key)))


def of_listener(options: dict[str, Any]) -> grpc.ServerCredentials | None:
    """Take the options of `to_listen` out, and return what they say. Raises UsageError."""
    cert, key, ca = (options.pop(f"listen_{name}") for name in ("cert", "key", "ca"))
    _check_pair(cert, key, "--listen-cert", "--listen-key")
    if cert is None:
        if ca is not None:
            raise click.UsageError("--listen-ca goes with --listen-cert")
        return None
    pair = (key.read(), cert.read())
    return grpc.ssl_server_credentials([pair], root_certificates=_read(ca), require_client_auth=ca is not None)


def _check_pair(cert: BinaryIO | None, key: BinaryIO | None, *names: str) -> None:
    if (cert is None) != (key is None):
        raise click.UsageError(f"{names[0]} and {names[1]} come together")


def _read(file: BinaryIO | None) -> bytes | None:
    return None if file is None else file.read()
