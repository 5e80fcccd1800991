"""The daemon's log: one event a line on stderr, for machines (JSON) or people (console), never in the way of a run.

Above: `cli`, which opens it; everybody else asks structlog for a logger. Lines go through a bounded queue to one
thread: when nobody reads stderr, lines are dropped and counted, and no caller waits. A line is one line, whatever is in
its fields: control characters are escaped, long fields are cut. A line of a run's work names the run, its session and
its trace (`about`).
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import structlog

from behestd.telemetry import about

QUEUE_LINES = 4096
FIELD_CHARACTERS = 2048
EXCEPTION_CHARACTERS = 16 * 1024
LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}

Fields = MutableMapping[str, Any]
Render = Callable[[Fields], str]

_LEFT_OUT = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What could end a line, move the cursor of a terminal, or show text in another order than it is in."""
_PLAIN = re.compile(r"[^\s\"'=\\]+")


@dataclass(frozen=True, slots=True)
class Statistics:
    """Lines since the start."""

    written: int = 0
    dropped: int = 0


class Logs:
    """The log, from `with` to its end. Its level can be set at any time; there is one at a time in a process."""

    def __init__(self, *, format: Literal["console", "json"], level: str, descriptor: int = 2) -> None:
        self._render: Render = to_json if format == "json" else to_console
        self._lines = _Lines(descriptor, self._render)
        self._level = LEVELS[level]
        self._handler = _Handler(self)

    def __enter__(self) -> Self:
        structlog.configure(
            processors=[self._filter, structlog.contextvars.merge_contextvars, _add_exception, self._write],
            wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
            logger_factory=_Named,
            cache_logger_on_first_use=False,
        )
        logging.getLogger().addHandler(self._handler)
        self._set_levels()
        self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is queued, for a second at most."""
        logging.getLogger().removeHandler(self._handler)
        self._lines.close()
        structlog.reset_defaults()

    def set_level(self, level: str) -> None:
        """Write this level and those above it from now on: "debug", "info", "warning" or "error"."""
        self._level = LEVELS[level]
        self._set_levels()

    def _set_levels(self) -> None:
        # What libraries tell below a warning holds statements and their values: prompts, that is.
        logging.getLogger().setLevel(max(self._level, logging.WARNING))
        logging.getLogger(__name__.partition(".")[0]).setLevel(self._level)

    def line(self, text: str) -> None:
        """Write a line as it is, in either format: what a person or a script waits for."""
        self._lines.put(_escaped(text))

    def statistics(self) -> Statistics:
        """Counters."""
        return self._lines.statistics()

    def write(self, level: str, name: str, fields: Fields) -> None:
        """Render an event and queue it."""
        head = {"time": _now(), "level": level, "logger": name, "event": fields.pop("event", "")}
        about.add(fields)
        self._lines.put(self._render({**fields, **head} if fields.keys() & head else {**head, **fields}))

    def _filter(self, logger: Any, method: str, fields: Fields) -> Fields:
        level = "error" if method == "exception" else method
        if LEVELS.get(level, logging.INFO) < self._level:
            raise structlog.DropEvent
        return fields

    def _write(self, logger: Any, method: str, fields: Fields) -> Fields:
        self.write("error" if method == "exception" else method, getattr(logger, "name", ""), fields)
        raise structlog.DropEvent


class _Lines:
    """A bounded queue of lines and the thread that writes them. What does not fit is dropped and counted."""

    def __init__(self, descriptor: int, render: Render) -> None:
        self._descriptor = descriptor
        self._render = render
        self._queue: queue.Queue[str | None] = queue.Queue(QUEUE_LINES)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._written = self._dropped = self._told = 0

    def start(self) -> None:
        self._thread.start()

    def put(self, line: str) -> None:
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        try:
            self._queue.put(None, timeout=1.0)
        except queue.Full:
            return
        self._thread.join(1.0)

    def statistics(self) -> Statistics:
        return Statistics(self._written, self._dropped)

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            self._emit(line)
            if self._queue.empty():
                self._tell()
        self._tell()

    def _tell(self) -> None:
        """Say how many lines were dropped since this was last said."""
        lines = self._dropped - self._told
        if lines:
            self._told += lines
            self._emit(self._render({"time": _now(), "level": "warning", "event": "log lines dropped", "lines": lines}))

    def _emit(self, line: str) -> None:
        data = line.encode(errors="backslashreplace") + b"\n"
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            self._written += 1
        except OSError:
            # Nobody reads any more; there is no other place to say so.
            self._dropped += 1
            self._told += 1


class _Named:
    """What structlog hands to its processors: the logger's name."""

    def __init__(self, name: str = "") -> None:
        self.name = name


class _Handler(logging.Handler):
    """Brings what libraries log through the standard library into the same lines."""

    def __init__(self, logs: Logs) -> None:
        super().__init__()
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record; fields given as `extra` stay fields."""
        fields: Fields = {key: value for key, value in record.__dict__.items() if key not in _LEFT_OUT}
        fields["event"] = record.getMessage()
        fields["exc_info"] = record.exc_info
        _add_exception(None, "", fields)
        self._logs.write(record.levelname.lower(), record.name, fields)


def to_json(fields: Fields) -> str:
    """Render an event as one line of JSON, in ASCII."""
    return json.dumps({key: _bounded(key, value) for key, value in fields.items()}, default=str)


def to_console(fields: Fields) -> str:
    """Render an event for people: time, level, event, fields; a traceback below it, indented."""
    rest = dict(fields)
    head = f"{rest.pop('time')} {rest.pop('level'):<7} {_escaped(str(rest.pop('event')))[:FIELD_CHARACTERS]}"
    rest.pop("logger", None)
    exception = rest.pop("exception", "")
    shown = [f"{_escaped(key)}={_quoted(str(_bounded(key, value)))}" for key, value in rest.items()]
    below = [f"    {_escaped(line)}" for line in str(exception)[-EXCEPTION_CHARACTERS:].splitlines()]
    return "\n".join([" ".join([head, *shown]), *below])


def _add_exception(logger: Any, method: str, fields: Fields) -> Fields:
    """Turn `exc_info` into the text of the traceback, without the values of variables."""
    if fields.get("exc_info"):
        structlog.processors.format_exc_info(logger, method, fields)
    fields.pop("exc_info", None)
    return fields


def _bounded(key: str, value: object) -> object:
    """Cut what is long; of a traceback the end is kept, where the error is."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else str(value)
    if key == "exception":
        return text[-EXCEPTION_CHARACTERS:]
    return text if len(text) <= FIELD_CHARACTERS else f"{text[:FIELD_CHARACTERS]}…"


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) and not _UNSAFE.search(text) else f'"{_escaped(text, quote=True)}"'


def _escaped(text: str, *, quote: bool = False) -> str:
    if quote:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return _UNSAFE.sub(lambda found: found.group().encode("unicode_escape", "surrogatepass").decode(), text)


def _now() -> str:
    now_ns = time.time_ns()
    seconds, rest = divmod(now_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest // 1_000_000:03d}Z"
