"""TLS at the command line: the options of both ends, and the credentials that they stand for.

Above: the commands that connect to a daemon, or listen, beyond this machine. Certificates and keys are files, PEM, read
once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import click
import grpc

if TYPE_CHECKING:
    from collections.abc import Callable

_FILE = click.File("rb")


def to_daemon(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a connection to a daemon."""
    for option in (
        click.option("--key", type=_FILE, help="The key of that certificate."),
        click.option("--cert", type=_FILE, help="Certificate to show to the daemon. Implies --tls."),
        click.option("--ca", type=_FILE, help="Authorities that may sign the daemon's certificate. Implies --tls."),
        click.option("--tls", is_flag=True, help="Connect with TLS. Default: plaintext."),
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


def of_daemon(options: dict[str, Any]) -> grpc.ChannelCredentials | None:
    """Take the options of `to_daemon` out, and return what they say. Raises UsageError."""
    is_asked, ca, cert, key = (options.pop(name) for name in ("tls", "ca", "cert", "key"))
    _check_pair(cert, key, "--cert", "--key")
    if not (is_asked or ca or cert):
        return None
    return grpc.ssl_channel_credentials(_read(ca), _read(key), _read(cert))


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
