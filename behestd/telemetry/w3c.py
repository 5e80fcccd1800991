"""W3C trace context: which trace something is part of, under which span, and whether the trace is recorded.

Above: everybody who starts something that may be part of a trace. Below: nothing. A span that the daemon makes of
something that lasts is named by that thing: its id is a digest of a key that is in the run's log, so that whoever goes
on with the run after a crash, goes on in the same span.
"""

from __future__ import annotations

import re
from hashlib import sha256

_CONTEXT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", re.DOTALL)
_LENGTH = 55
RECORDED = "01"
"""The flags of a trace that is recorded."""


def valid(traceparent: str) -> str:
    """A trace context that came from outside, as far as this version of the standard goes; empty when it is none."""
    if not _CONTEXT.fullmatch(traceparent) or (traceparent.startswith("00") and len(traceparent) != _LENGTH):
        return ""
    return f"00{traceparent[2:_LENGTH]}"


def of_run(traceparent: str, known: str) -> str:
    """The trace context of a run: the one that it was created with, else its trace alone, which old logs know."""
    return traceparent or (f"00-{known}-{'0' * 16}-{RECORDED}" if known else "")


def trace_id(traceparent: str) -> str:
    """The trace, 32 hex digits; empty when there is none."""
    return traceparent[3:35]


def span_id(traceparent: str) -> str:
    """The span, 16 hex digits; empty when there is none."""
    return traceparent[36:52]


def is_recorded(traceparent: str) -> bool:
    """Whether who began the trace records it, and wants us to."""
    return bool(traceparent) and bool(int(traceparent[53:55], 16) & 1)


def span_of(key: str) -> str:
    """The id of the span that a key names."""
    return sha256(key.encode()).hexdigest()[:16]


def under(traceparent: str, key: str) -> str:
    """The trace context of the span that a key names, in the trace of another. Empty for no trace."""
    return f"{traceparent[:36]}{span_of(key)}{traceparent[52:]}" if traceparent else ""


def run_key(run_id: str) -> str:
    """What names the span of a run."""
    return f"run\0{run_id}"


def step_key(run_id: str, step: int) -> str:
    """What names the span of a step of a run."""
    return f"{run_id}\0{step}"


def model_key(run_id: str, step: int, attempt: int) -> str:
    """What names the span of an attempt at a model."""
    return f"{run_id}\0{step}\0{attempt}"


def summary_key(run_id: str, attempt: int) -> str:
    """What names the span of an attempt at a summary for a run."""
    return f"{run_id}\0summary\0{attempt}"


def node_key(run_id: str, visit: int) -> str:
    """What names the span of a visit of a node of a run's graph."""
    return f"{run_id}\0node\0{visit}"


def tool_key(key: str, attempt: int) -> str:
    """What names the span of an attempt at a tool call, by the call's idempotency key."""
    return f"{key}\0{attempt}"
