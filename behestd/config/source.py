"""Where settings come from: defaults, then the file, then the environment, then flags, each over the one before.

Above: `cli` and the daemon's reload. Below: `config`. Tables are merged key by key, everything else is replaced.
Every value knows its source; every problem names source and key, never the value, which may be a secret. Loading
changes nothing, so that an invalid configuration leaves the one in force alone.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from behestd.config.settings import Settings
from behestd.errors import InvalidRequest
from behestd.secret import Reference, SecretUnusable, Vault
from behestd.service import listen

ENV_PREFIX = "BEHEST__"
DEFAULT = "default"
MAX_FILE_BYTES = 1024 * 1024

Key = tuple[str, ...]
_DATA_DIR = ("storage", "data_dir")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one key. `source` is the file, the variable or the flag; `key` may be empty."""

    source: str
    key: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.key, self.text) if part)


class ConfigInvalid(InvalidRequest):
    """Raised when the configuration breaks a rule (exit code 78). `problems` has all that were found, at least one."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        first = problems[0]
        super().__init__(
            first.key,
            first.text,
            reason="RUNTIME_CONFIG_INVALID",
            more=tuple((problem.key, problem.text) for problem in problems[1:]),
        )
        self.metadata = {"key": first.key, "source": first.source}
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of the command line: its name, the dotted key that it sets, and the value."""

    name: str
    key: str
    value: object


@dataclass(frozen=True, slots=True)
class Entry:
    """A setting in force. A reference to a secret is shown, a secret itself is `***`."""

    key: str
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings, where each came from, and the vault that their secrets are read from."""

    settings: Settings
    sources: Mapping[Key, str]
    vault: Vault

    def source(self, key: Sequence[str | int]) -> str:
        """Tell where a value came from; a table's is that of the first thing in it."""
        return _source_of(self.sources, key)

    def effective(self) -> tuple[Entry, ...]:
        """List every setting in force, in the order of the reference, secrets masked."""
        return tuple(
            Entry(dotted(key), value, self.sources.get(key, DEFAULT))
            for key, value in _leaves(self.settings.model_dump(mode="json"))
        )

    def invalid(self, key: Sequence[str | int], text: str) -> ConfigInvalid:
        """Make the error of a setting that turns out to be wrong later on."""
        return ConfigInvalid([Problem(self.source(key), dotted(key), text)])


@dataclass(frozen=True, slots=True)
class Origin:
    """What a configuration is read from. `load` can be called again, as a reload does."""

    file: Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    flags: tuple[Flag, ...] = ()

    def load(self) -> Configuration:
        """Read, merge and check everything, and see that every secret can be had. Raises ConfigInvalid."""
        layers = _Layers()
        if self.file is not None:
            layers.lay((), _read(self.file), str(self.file))
        variables = sorted(name for name in self.environ if name.startswith(ENV_PREFIX))
        for name in sorted(variables, key=lambda name: name.count("__")):
            key = tuple(name.removeprefix(ENV_PREFIX).lower().split("__"))
            layers.lay(key, _literal(name, key, self.environ[name]), name)
        for flag in self.flags:
            layers.lay(tuple(flag.key.split(".")), flag.value, flag.name)
        if layers.find(_DATA_DIR) in (None, ""):
            layers.lay(_DATA_DIR, *data_dir(self.environ))
        try:
            settings = Settings.model_validate(layers.tree)
        except ValidationError as error:
            problems = [_problem(layers, details) for details in error.errors(include_url=False, include_input=False)]
            raise ConfigInvalid(problems) from None
        configuration = Configuration(settings, layers.sources, Vault(self.environ))
        missing = [*_missing(configuration), *_unprotected(configuration)]
        if missing:
            raise ConfigInvalid(missing)
        return configuration


class _Layers:
    """The tree of raw values so far, and the source of each that is no table."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.sources: dict[Key, str] = {}

    def lay(self, key: Key, value: object, source: str) -> None:
        """Put a value over what is there; a table goes in key by key."""
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                self.lay((*key, name), inner, source)
        elif value != {} or not isinstance(self.find(key), dict):
            self.put(key, value, source)

    def put(self, key: Key, value: object, source: str) -> None:
        """Replace what is at a key."""
        table = self.tree
        for index, name in enumerate(key[:-1]):
            inner = table.get(name)
            if not isinstance(inner, dict):
                self.sources.pop(key[: index + 1], None)
                inner = table[name] = {}
            table = inner
        for old in [old for old in self.sources if old[: len(key)] == key]:
            del self.sources[old]
        if key:
            table[key[-1]] = value
            self.sources[key] = source

    def find(self, key: Key) -> object:
        """Return what is at a key, None when there is nothing."""
        found: object = self.tree
        for name in key:
            found = found.get(name) if isinstance(found, dict) else None
        return found


def data_dir(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the data directory that nobody configured, and what it follows from."""
    of_systemd = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if of_systemd:
        return of_systemd, "STATE_DIRECTORY"
    of_user = environ.get("XDG_STATE_HOME", "")
    if of_user.startswith("/"):
        return f"{of_user}/behestd", "XDG_STATE_HOME"
    home = environ.get("HOME") or str(Path.home())
    return f"{home}/.local/state/behestd", DEFAULT


def dotted(key: Sequence[str | int]) -> str:
    """Write a key as TOML does."""
    shown = ""
    for name in key:
        if isinstance(name, int):
            shown += f"[{name}]"
        else:
            is_bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
            shown += ("." if shown else "") + (name if is_bare else json.dumps(name[:128]))
    return shown


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigInvalid([Problem(str(path), "", f"it has more than {MAX_FILE_BYTES} bytes")])
        return tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigInvalid([Problem(str(path), "", f"it cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise ConfigInvalid([Problem(str(path), "", "it is no UTF-8")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid([Problem(str(path), "", f"it is no TOML: {error}")]) from None


# --- the environment ---


def _literal(variable: str, key: Key, text: str) -> object:
    """Read a variable's text as what its key holds: a text as it is, everything else as a TOML or JSON value."""
    kind = kind_at(key)
    if kind is None or _holds_text(kind):
        return text
    readers: tuple[Callable[[str], object], ...] = (_toml_value, json.loads)
    for read in readers:
        try:
            return read(text)
        except ValueError:
            continue
    raise ConfigInvalid([Problem(variable, dotted(key), "it is neither a TOML value nor JSON")])


def _toml_value(text: str) -> object:
    document = tomllib.loads(f"value = {text}")
    if document.keys() != {"value"}:
        raise ValueError("more than one value")
    return document["value"]


def kind_at(key: Key) -> Any:
    """Return the type that belongs to a key, None when there is no such key."""
    kind: Any = Settings
    for name in key:
        kind = bare_kind(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if name not in kind.model_fields:
                return None
            kind = kind.model_fields[name].annotation
        elif get_origin(kind) is Mapping:
            kind = get_args(kind)[1]
        elif get_origin(kind) is tuple and name.isdigit():
            kind = get_args(kind)[0]
        else:
            return None
    return kind


def bare_kind(kind: Any) -> Any:
    """Take Annotated and `| None` away from a type."""
    while hasattr(kind, "__metadata__"):
        kind = kind.__origin__
    if get_origin(kind) in (types.UnionType, Union):
        return bare_kind(next(inner for inner in get_args(kind) if inner is not types.NoneType))
    return kind


def _holds_text(kind: Any) -> bool:
    bare = bare_kind(kind)
    choices = get_args(bare)
    return bare in (str, Reference) or (bool(choices) and all(isinstance(choice, str) for choice in choices))


# --- problems ---


def _problem(layers: _Layers, details: Mapping[str, Any]) -> Problem:
    key = tuple(name for name in details["loc"] if name != "[key]")
    text = str(details["msg"]).removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        text = "unknown key" + _suggestion(key)
    elif details["type"] == "missing":
        text = "it is required"
    # A list is one value: what is wrong inside it has the list's source.
    return Problem(_source_of(layers.sources, key), dotted(key), text[:1].lower() + text[1:])


def _suggestion(key: Sequence[str | int]) -> str:
    kind = bare_kind(kind_at(tuple(str(name) for name in key[:-1])))
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return ""
    close = difflib.get_close_matches(str(key[-1]), kind.model_fields, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _source_of(sources: Mapping[Key, str], key: Sequence[str | int]) -> str:
    """Return the source of a value, of the list that it is in, or of the first thing below it."""
    path = tuple(str(name) for name in key)
    for length in range(len(path), 0, -1):
        if path[:length] in sources:
            return sources[path[:length]]
    return next((source for known, source in sources.items() if known[: len(path)] == path), DEFAULT)


def _missing(configuration: Configuration) -> Iterator[Problem]:
    for key, reference in references(configuration.settings):
        try:
            configuration.vault.read(reference)
        except SecretUnusable as error:
            yield Problem(_source_of(configuration.sources, key), dotted(key), str(error.args[0]))


def _unprotected(configuration: Configuration) -> Iterator[Problem]:
    server, auth = configuration.settings.server, configuration.settings.auth
    for index, text in enumerate(server.listen):
        try:
            listen.check_open(listen.parse(text), has_tls=server.tls is not None, has_credentials=not auth.is_empty)
        except listen.AddressRefused as error:
            key = ("server", "listen")
            yield Problem(_source_of(configuration.sources, key), dotted((*key, index)), str(error))


def references(value: object, key: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Reference]]:
    """Yield every reference to a secret, with its key."""
    if isinstance(value, Reference):
        yield key, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from references(getattr(value, name), (*key, name))
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from references(inner, (*key, name))
    elif isinstance(value, tuple):
        for index, inner in enumerate(value):
            yield from references(inner, (*key, index))


def _leaves(value: object, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, dict) and (value or not key):
        for name, inner in value.items():
            yield from _leaves(inner, (*key, name))
    else:
        yield key, value
