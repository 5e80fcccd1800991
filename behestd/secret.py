"""Secrets by reference: what the configuration names, and the vault that reads it. Nothing here ever shows a secret.

Above: `config`, whose fields are references, and `planning`, which hands what they name to those who send it. A
secret can be read anew whenever it is sent, so that a rotated one is used at once; `config.source` reads each once at
the start, so that one that is missing is known before anything runs.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from behestd.providers.secret import Secret

MAX_BYTES = 64 * 1024
MASK = "***"
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CREDENTIAL_NAME = re.compile(r"[A-Za-z0-9_.@:-]{1,255}")
_FOR_EVERYBODY = stat.S_IRWXO


class SecretUnusable(LookupError):
    """Raised when what a reference names is not there, is empty, or can be read by everybody."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a secret is: `env:NAME`, `file:/path` or `credential:NAME`. Kind "text" is a text that nobody is shown."""

    kind: str
    name: str = field(repr=False)
    is_public: bool = False
    """Whether everybody may read it, as a certificate or an authority; nobody else may change it all the same."""

    def __str__(self) -> str:
        return MASK if self.kind == "text" else f"{self.kind}:{self.name}"


def parse(text: object) -> Reference:
    """Read a reference. Raises ValueError, which does not repeat the text: it may be the secret itself."""
    kind, colon, name = text.partition(":") if isinstance(text, str) else ("", "", "")
    is_good = {
        "env": _ENV_NAME.fullmatch(name) is not None,
        "file": name.startswith("/") and "\0" not in name,
        "credential": _CREDENTIAL_NAME.fullmatch(name) is not None and name not in (".", ".."),
    }.get(kind, False)
    if not colon or not is_good:
        raise ValueError("a secret is given as env:NAME, file:/path or credential:NAME")
    return Reference(kind, name)


def parse_public(text: object) -> Reference:
    """Read a reference to what is no secret, but kept like one: certificates, public keys. Raises ValueError."""
    found = parse(text)
    return Reference(found.kind, found.name, is_public=True)


def parse_or_text(text: object) -> Reference:
    """Read a reference, or take the text as it is. Raises ValueError for what is no text."""
    if not isinstance(text, str):
        raise ValueError("it must be a text")
    if text.startswith(("env:", "file:", "credential:")):
        return parse(text)
    return Reference("text", text)


class Vault:
    """Reads secrets from files, from the environment it was given, and from systemd's credentials."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def read(self, reference: Reference) -> Secret:
        """Read a secret; one newline at its end is left out. Raises SecretUnusable."""
        if reference.kind == "text":
            return Secret(reference.name)
        if reference.kind == "env":
            text = self._environ.get(reference.name, "")
            if not text:
                raise SecretUnusable(f"{reference} is not set or empty")
            return Secret(text)
        return Secret(_read(reference, self._path(reference)))

    def _path(self, reference: Reference) -> Path:
        if reference.kind == "file":
            return Path(reference.name)
        directory = self._environ.get("CREDENTIALS_DIRECTORY", "")
        if not directory:
            raise SecretUnusable(f"{reference} needs CREDENTIALS_DIRECTORY, which systemd sets")
        return Path(directory) / reference.name


def _read(reference: Reference, path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SecretUnusable(f"{reference} cannot be read: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SecretUnusable(f"{reference} is no file")
        mode = stat.S_IMODE(status.st_mode)
        if reference.is_public and mode & stat.S_IWOTH:
            raise SecretUnusable(f"{reference} can be changed by everybody (mode {mode:04o}): chmod o-w it")
        if not reference.is_public and mode & _FOR_EVERYBODY:
            raise SecretUnusable(f"{reference} is open to everybody (mode {mode:04o}): chmod o= it")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise SecretUnusable(f"{reference} has more than {MAX_BYTES} bytes")
    try:
        text = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise SecretUnusable(f"{reference} is no UTF-8") from None
    if not text:
        raise SecretUnusable(f"{reference} is empty")
    return text
