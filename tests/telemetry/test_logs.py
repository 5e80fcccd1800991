"""The log: one event a line whatever is in it, in both formats, at a level that can change, in nobody's way."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import structlog

from behestd.telemetry.logs import FIELD_CHARACTERS, QUEUE_LINES, Logs

HOSTILE = "one\ntwo\r\x1b[31mred\x00\x07\x9b\u2028\u202eevil\ud800 %s {0}"


@dataclass
class Pipe:
    """A pipe to log into; `read` returns what came once the log is closed."""

    reader: int
    writer: int

    def read(self) -> list[str]:
        """Close the writing side and read to the end."""
        os.close(self.writer)
        with open(self.reader, "rb", closefd=False) as file:
            return file.read().decode().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe, closed in the end."""
    made = Pipe(*os.pipe())
    yield made
    os.close(made.reader)


def logged(pipe: Pipe, **fields: Any) -> list[dict[str, Any]]:
    """Log one event as JSON and read it back."""
    with Logs(format="json", level="info", descriptor=pipe.writer):
        structlog.get_logger("room").info("event", **fields)
    return [json.loads(line) for line in pipe.read()]


def test_a_line_of_json_has_time_level_logger_event_and_fields(pipe: Pipe) -> None:
    (line,) = logged(pipe, run_id="run_1", runs=3, ok=True, nothing=None)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "room",
        "event": "event",
        "run_id": "run_1",
        "runs": 3,
        "ok": True,
        "nothing": None,
    }


def test_bound_context_is_in_every_line(pipe: Pipe) -> None:
    with structlog.contextvars.bound_contextvars(run_id="run_2"):
        (line,) = logged(pipe)
    assert line["run_id"] == "run_2"


@pytest.mark.parametrize("format", ["json", "console"])
def test_control_characters_cannot_make_a_line(pipe: Pipe, format: Any) -> None:  # S17
    with Logs(format=format, level="info", descriptor=pipe.writer) as log:
        structlog.get_logger("room").info("hostile", text=HOSTILE, **{"k\ney": HOSTILE})
        logging.getLogger("library").warning(HOSTILE)
        log.line(HOSTILE)
    lines = pipe.read()
    assert len(lines) == 3
    for line in lines:
        assert line.isprintable(), ascii(line)


def test_long_fields_are_cut(pipe: Pipe) -> None:  # S17
    (line,) = logged(pipe, text="x" * 100_000, nested={"deep": ["y" * 100_000]})
    assert len(line["text"]) == len(line["nested"]) == FIELD_CHARACTERS + 1


def test_a_field_cannot_take_the_place_of_the_level(pipe: Pipe) -> None:
    (line,) = logged(pipe, level="forged", time="never")
    assert line["level"] == "info"
    assert line["time"] != "never"


def test_a_traceback_is_one_field_of_json_and_indented_on_a_console() -> None:
    for format, wanted in (("json", 1), ("console", 4)):
        pipe = Pipe(*os.pipe())
        with Logs(format=format, level="info", descriptor=pipe.writer):  # type: ignore[arg-type]
            try:
                raise ValueError("first line\nforged line")
            except ValueError:
                structlog.get_logger("room").exception("failed", run_id="run_1")
        lines = pipe.read()
        os.close(pipe.reader)
        assert len(lines) >= wanted
        assert all(line.startswith("    ") for line in lines[1:])
        assert "ValueError" in "".join(lines)
        assert "error" in lines[0]


def test_a_line_of_the_console_reads_itself(pipe: Pipe) -> None:
    with Logs(format="console", level="info", descriptor=pipe.writer):
        structlog.get_logger("room").warning("draining", runs=3, reason="a b", path="/x")
    (line,) = pipe.read()
    assert line.partition(" ")[2] == 'warning draining runs=3 reason="a b" path=/x'


def test_the_level_can_be_changed_while_it_runs(pipe: Pipe) -> None:
    bound = structlog.get_logger("room")
    with Logs(format="json", level="info", descriptor=pipe.writer) as log:
        kept = bound.bind(run_id="run_1")
        for level in ("info", "debug", "error", "info"):
            log.set_level(level)
            kept.debug("debug", at=level)
            kept.warning("warning", at=level)
            logging.getLogger("behestd.room").debug("standard", extra={"at": level})
    seen = [(line["event"], line["at"]) for line in map(json.loads, pipe.read())]
    assert seen == [
        ("warning", "info"),
        ("debug", "debug"),
        ("warning", "debug"),
        ("standard", "debug"),
        ("warning", "info"),
    ]


def test_libraries_tell_of_warnings_only_whatever_the_level(pipe: Pipe) -> None:  # S9: they show statements with values
    with Logs(format="json", level="debug", descriptor=pipe.writer):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger("aiosqlite").log(level, "level %d", level)
    assert [json.loads(line)["event"] for line in pipe.read()] == ["level 30"]


def test_the_standard_librarys_records_keep_their_fields(pipe: Pipe) -> None:
    with Logs(format="json", level="info", descriptor=pipe.writer):
        logging.getLogger("grpc").error("call %s", "failed", extra={"method": "/m", "reason": "R"})
    (line,) = map(json.loads, pipe.read())
    assert (line["event"], line["level"], line["logger"]) == ("call failed", "error", "grpc")
    assert (line["method"], line["reason"]) == ("/m", "R")


def test_a_blocked_reader_costs_lines_and_no_time(pipe: Pipe) -> None:  # matrix row 75
    os.set_blocking(pipe.writer, True)
    log = Logs(format="json", level="info", descriptor=pipe.writer)
    with log:
        logger = structlog.get_logger("room")
        lines = QUEUE_LINES * 2 + 2_000
        for number in range(lines):
            logger.info("event", number=number)
        stuck = log.statistics()
        assert stuck.dropped > 0
        assert stuck.written < lines - QUEUE_LINES
        found: list[str] = []

        def drain() -> None:
            with open(pipe.reader, closefd=False) as file:
                found.extend(file)

        reader = threading.Thread(target=drain)
        reader.start()
    os.close(pipe.writer)
    reader.join(5)
    events = [json.loads(line) for line in found]
    told = [event["lines"] for event in events if event["event"] == "log lines dropped"]
    assert sum(told) == log.statistics().dropped
    assert len(events) - len(told) + sum(told) == lines


def test_closing_does_not_wait_for_a_reader_that_never_comes(pipe: Pipe) -> None:  # matrix row 75
    log = Logs(format="json", level="info", descriptor=pipe.writer)
    with log:
        for _ in range(QUEUE_LINES * 2):
            structlog.get_logger("room").info("event", text="x" * 100)
        started = time.monotonic()
    assert time.monotonic() - started < 4
    assert log.statistics().dropped > 0
    # Lets the writing thread go.
    os.set_blocking(pipe.reader, False)
    while log.statistics().written + log.statistics().dropped < QUEUE_LINES * 2:
        try:
            os.read(pipe.reader, 1 << 20)
        except BlockingIOError:
            time.sleep(0)
    os.close(pipe.writer)


def test_a_closed_reader_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = Logs(format="json", level="info", descriptor=writer)
    with log:
        structlog.get_logger("room").info("event")
    os.close(writer)
    assert log.statistics().dropped == 1


def test_after_it_the_process_logs_as_before(pipe: Pipe) -> None:
    before = list(logging.getLogger().handlers)
    logged(pipe)
    assert logging.getLogger().handlers == before
    assert "behestd" not in sys.modules["structlog"].get_config()["processors"]
