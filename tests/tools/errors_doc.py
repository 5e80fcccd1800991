"""Writes docs/errors.md from the comments of error_reason.proto.

python -m tests.tools.errors_doc           write it
python -m tests.tools.errors_doc --check   write nothing; exit 1 when it is not current
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = ROOT / "proto/behest/v1/error_reason.proto"
TARGET = ROOT / "docs/errors.md"
PREFIX = "ERROR_REASON_"
CODE = re.compile(r"[A-Z]{2,}(_[A-Z]+)*")
EVENT = re.compile(r"In (Run\w+)")

HEAD = """\
# Errors

<!-- Generated from proto/behest/v1/error_reason.proto by `python -m tests.tools.errors_doc`. -->

A call that fails ends with a gRPC code and a `google.rpc.Status` in its trailers (`grpc-status-details-bin`). The
status holds exactly one `ErrorInfo` with the domain `behest`, a reason of the tables below, and the metadata named
there. Beside it:

- `BadRequest.field_violations` names each wrong field, with INVALID_ARGUMENT;
- `RetryInfo.retry_delay`, and the same as trailer `grpc-retry-pushback-ms`, says when to try again if that
  makes sense.

Reasons never change; texts may. A run that fails keeps a status of the same shape in its terminal event and in
`Run.error`. Values over 192 bytes are cut.
"""

BY_GRPC = """
## Answered by gRPC itself

These never reach the code of the daemon, so they carry no `ErrorInfo`. The SDKs name them by the reasons of the family
TRANSPORT; other clients go by the code alone.

| What happened | Code | Reason in the SDKs |
|---|---|---|
| The request is over the limit of the transport | RESOURCE_EXHAUSTED | TRANSPORT_TOO_LARGE |
| The metadata is over its limit | RESOURCE_EXHAUSTED | TRANSPORT_TOO_LARGE |
| The response is over the limit of either side | RESOURCE_EXHAUSTED | TRANSPORT_TOO_LARGE |
| The daemon does not serve the method | UNIMPLEMENTED | TRANSPORT_UNIMPLEMENTED |
| The deadline that the client set is over | DEADLINE_EXCEEDED | TRANSPORT_DEADLINE |
| The client cancelled the call | CANCELLED | TRANSPORT_CANCELLED |
| The daemon cannot be reached, or stopped during the call | UNAVAILABLE | TRANSPORT_UNAVAILABLE |

A method that the daemon's version knows but does not offer is REQUEST_UNSUPPORTED. A unary call without a deadline gets
one from the daemon (`GetServerInfo.limits.default_deadline`); when that is over, the status carries TRANSPORT_DEADLINE.
The services of gRPC beside ours (health, reflection) answer as their own protocols say.
"""


@dataclass(frozen=True, slots=True)
class Reason:
    """One value of the enum. `code` is empty for a reason that only runs end with; `events` then names where."""

    name: str
    number: int
    text: str
    code: str
    events: str
    keys: tuple[str, ...]

    @property
    def family(self) -> str:
        """The first word of the name."""
        return self.name.split("_")[0]


def reasons(source: str) -> list[Reason]:
    """Read the values of the enum with what their comments say. Raises ValueError for a comment without a code."""
    found = []
    for comment, name, number in re.findall(rf"((?:  //[^\n]*\n)+)  {PREFIX}(\w+) = (\d+);", source):
        if name == "UNSPECIFIED":
            continue
        words = " ".join(line.strip().removeprefix("//").strip() for line in comment.strip().splitlines())
        text, _, last = words.removesuffix(".").rpartition(". ")
        code, _, keys = last.partition("; ")
        event = EVENT.fullmatch(code)
        if event is None and not CODE.fullmatch(code):
            raise ValueError(f"{name}: {last!r} begins with neither a code nor an event")
        named = tuple(key for key in keys.split(", ") if key)
        found.append(Reason(name, int(number), f"{text}.", "" if event else code, event[1] if event else "", named))
    return found


def render(source: str) -> str:
    """Return the document."""
    lines = [HEAD]
    families: dict[str, list[Reason]] = {}
    for reason in reasons(source):
        families.setdefault(reason.family, []).append(reason)
    for family, members in families.items():
        lines += [f"\n## {family}\n", "| Reason | Code | Metadata | Meaning |", "|---|---|---|---|"]
        for reason in members:
            keys = ", ".join(f"`{key}`" for key in reason.keys)
            code = reason.code or f"in `{reason.events}`"
            lines.append(f"| {reason.name} | {code} | {keys} | {reason.text} |")
    return "\n".join(lines) + "\n" + BY_GRPC


def main() -> int:
    """Write the document, or with --check say whether it is current."""
    parser = argparse.ArgumentParser(description="Write docs/errors.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    options = parser.parse_args()
    wanted = render(SOURCE.read_text())
    if options.check:
        return 0 if TARGET.exists() and TARGET.read_text() == wanted else 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
