"""Named crash points, compiled into the shipped daemon and inert unless BEHEST_FP is set when the process starts.

`BEHEST_FP="name=action[,action…][;name=…]"`. Actions: `kill` (SIGKILL to itself), `exit` (exit code 70 at once),
`raise` (a RuntimeError), `sleep:MS` (blocks the thread), `once` (only the first hit), `after:N` (skip the first N
hits), `p=X` (with probability X), `run=ID` (only for that run). A point that kills writes `failpoint NAME` to stderr
first, so that a test can prove that it was hit. Anybody may import this leaf.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field

VARIABLE = "BEHEST_FP"


@dataclass(slots=True)
class _Point:
    actions: list[str] = field(default_factory=list)
    once: bool = False
    skip: int = 0
    probability: float = 1.0
    run_id: str = ""
    hits: int = 0


def parse(text: str) -> dict[str, _Point]:
    """Read the value of BEHEST_FP. Raises ValueError naming the part that makes no sense."""
    points: dict[str, _Point] = {}
    for clause in filter(None, (part.strip() for part in text.split(";"))):
        name, separator, rest = clause.partition("=")
        if not separator:
            raise ValueError(f"{VARIABLE}: {clause!r} is not name=action")
        point = _Point()
        for word in rest.split(","):
            key, _, value = word.partition("=" if "=" in word else ":")
            if word in ("kill", "exit", "raise"):
                point.actions.append(word)
            elif key == "sleep":
                point.actions.append(f"sleep:{float(value)}")
            elif word == "once":
                point.once = True
            elif key == "after":
                point.skip = int(value)
            elif key == "p":
                point.probability = float(value)
            elif key == "run":
                point.run_id = value
            else:
                raise ValueError(f"{VARIABLE}: unknown action {word!r}")
        points[name] = point
    return points


_POINTS = parse(os.environ.get(VARIABLE, ""))


def failpoint(name: str, run_id: str = "") -> None:
    """Do what BEHEST_FP says for this point; nothing at all when it is not armed."""
    if not _POINTS:
        return
    point = _POINTS.get(name)
    if point is None or (point.run_id and point.run_id != run_id):
        return
    point.hits += 1
    if point.hits <= point.skip or (point.once and point.hits > point.skip + 1):
        return
    if random.random() > point.probability:
        return
    for action in point.actions:
        _act(name, action)


def _act(name: str, action: str) -> None:
    if action.startswith("sleep:"):
        time.sleep(float(action[6:]) / 1000)
        return
    sys.stderr.write(f"failpoint {name}\n")
    sys.stderr.flush()
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "exit":
        os._exit(70)
    raise RuntimeError(f"failpoint {name}")
