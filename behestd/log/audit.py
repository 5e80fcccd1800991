"""The audit log as bytes: rows, the chain that ties them together, and its verification. Nothing is written here.

Above: `audit_writer`, and the command that reads and verifies. A row is one line of JSON that holds the SHA-256 of the
line before it, so nothing in the middle can be changed, taken out or moved unseen. The head, a small file beside the
rows, says how far the log went and what its last line hashes to: a log that was cut at its end is seen too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from behestd.values import dataclass

DIRECTORY = "audit"
"""Below the data directory."""
HEAD = "head.json"
PATTERN = "audit-*.jsonl"
FIRST = "audit-000001.jsonl"
START = "0" * 64
"""What the first row of all names as the hash of the one before it."""
OPENED = "audit:opened"
"""The method of the row that each start of a daemon writes."""
MAX_TEXT = 256
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one call: never a content, a prompt, an argument or a secret."""

    time_ns: int
    method: str
    principal: str = ""
    credential: str = ""
    """What the caller was known by: `token:ID`, `certificate:URI` or `jwt:KEY`."""
    namespace: str = ""
    targets: Mapping[str, str] = field(default_factory=dict)
    """Ids and names of what the call was about."""
    code: str = "OK"
    reason: str = ""
    peer: str = ""
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """How far the log goes: the number and the hash of its last row."""

    sequence: int = 0
    hash: str = START


class Broken(Exception):
    """Raised when the log is not what was written. `file` and `line` say where that is seen."""

    def __init__(self, problem: str, file: str = "", line: int = 0) -> None:
        place = f"{file}:{line}: " if line else f"{file}: " if file else ""
        super().__init__(f"{place}{problem}")
        self.problem = problem


def line_of(row: Row, head: Head) -> tuple[bytes, Head]:
    """Make the line of a row, which ends with a newline, and the head after it."""
    body = {
        "sequence": head.sequence + 1,
        "previous": head.hash,
        "time": _time(row.time_ns),
        "method": row.method[:MAX_TEXT],
        "principal": row.principal[:MAX_TEXT],
        "credential": row.credential[:MAX_TEXT],
        "namespace": row.namespace[:MAX_TEXT],
        "targets": {key[:MAX_TEXT]: value[:MAX_TEXT] for key, value in row.targets.items()},
        "code": row.code[:MAX_TEXT],
        "reason": row.reason[:MAX_TEXT],
        "peer": row.peer[:MAX_TEXT],
        "trace_id": row.trace_id[:MAX_TEXT],
    }
    line = _encode(body).encode()
    return line + b"\n", Head(head.sequence + 1, sha256(line).hexdigest())


# ASCII, so that nothing of what a client named itself can be taken for something else on a terminal.
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def _time(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, _NANOSECONDS)
    return f"{_second(seconds)}.{rest // 1000:06d}Z"


@lru_cache(1)
def _second(seconds: int) -> str:
    """A second as text: hundreds of rows have the same one."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def files(directory: Path) -> list[Path]:
    """The files of a log, oldest first."""
    return sorted(directory.glob(PATTERN))


def read_head(directory: Path) -> Head | None:
    """The head as it was written last, None when there is none. Raises Broken when it cannot be read."""
    try:
        text = (directory / HEAD).read_text()
        found: dict[str, Any] = json.loads(text) if text else {"sequence": 0, "hash": START}
        return Head(int(found["sequence"]), str(found["hash"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Broken("the head cannot be read", HEAD) from error


def rows(directory: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the rows that can be read, oldest first, each with what is wrong with it: empty when nothing is.

    The first row of all is taken as it is, since older files may have been put away; what was cut off at the end is
    told by `verify`.
    """
    head: Head | None = None
    for path in files(directory):
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            place = f"{path.name}:{number}"
            body = _parsed(line)
            if body is None:
                yield {}, f"{place}: this is no row"
                continue
            sequence = body["sequence"]
            problem = _problem(body, head, is_first_file=path.name == FIRST)
            problem = f"{place}: {problem}" if problem else ""
            head = Head(sequence, sha256(line).hexdigest())
            yield body, problem


def _problem(body: dict[str, Any], head: Head | None, *, is_first_file: bool) -> str:
    """What is wrong with a row behind another one, None: behind none that is left."""
    sequence, previous = body["sequence"], body["previous"]
    if head is None and (sequence == 1) != is_first_file:
        return f"the log begins with row {sequence}"
    if head is None and sequence == 1 and previous != START:
        return "row 1 names a row before it"
    if head is not None and sequence != head.sequence + 1:
        return f"row {sequence} follows row {head.sequence}"
    if head is not None and previous != head.hash:
        return f"row {head.sequence} is not the one that row {sequence} was written after"
    found = body.get("targets", {}).get("problem", "") if body.get("method") == OPENED else ""
    return f"the daemon that started here found that {found}" if found else ""


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(line)
    except ValueError:
        return None
    fits = isinstance(body, dict) and isinstance(body.get("sequence"), int) and isinstance(body.get("previous"), str)
    return body if fits else None


def verify(directory: Path) -> int:
    """Verify a log, and count its rows. Raises Broken at the first thing that is wrong.

    Rows behind the head are those that were written last before the daemon died: they are part of the chain.
    """
    count, last = 0, Head()
    stored = read_head(directory)
    for body, problem in rows(directory):
        if problem:
            raise Broken(problem)
        count += 1
        last = Head(body["sequence"], "")
        if stored is not None and stored.sequence == last.sequence:
            _check_head(directory, stored)
    if stored is not None and stored.sequence > last.sequence:
        raise Broken(f"the log goes to row {last.sequence}, and went to row {stored.sequence}")
    if stored is None and count:
        raise Broken("the head is missing", HEAD)
    return count


def _check_head(directory: Path, stored: Head) -> None:
    """Hold the row that the head names against its hash."""
    for path in reversed(files(directory)):
        for line in reversed(path.read_bytes().splitlines()):
            body = _parsed(line)
            if body is not None and body["sequence"] == stored.sequence:
                if sha256(line).hexdigest() != stored.hash:
                    raise Broken(f"row {stored.sequence} is not the one that the head names", path.name)
                return
