"""The language of the scripted provider: directives in a user's input, parsed into turns. Pure. Above: `scripted`.

Total: whatever is no well-formed directive is text to be echoed, so any input has a meaning. Linear in the input, and
nothing is expanded here. Documented in `docs/scripted.md`, where a test runs each example.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from behest.v1.chat_pb2 import FinishReason
from behestd.providers.failure import CLASSES
from behestd.values import dataclass

MAX_WORDS = 100_000
MAX_DELAY_MS = 600_000
_NAMES = (
    "say", "words", "delay", "tool", "next", "repeat", "fail", "stall", "cut", "finish", "usage", "garbage",
    "reasoning", "json", "dump", "recall", "begin", "end",
)  # fmt: skip
_DIRECTIVE = re.compile(rf"(?:^|(?<=\s))/({'|'.join(_NAMES)})(?=\s|$)")
_SPACE = re.compile(r"\s+")
_TOOL_NAME = re.compile(r"\s+(\S+)\s*")
_BROKEN_JSON = '{"broken":'
_FINISH = {name.removeprefix("FINISH_REASON_").lower(): value for name, value in FinishReason.items() if value}


@dataclass(frozen=True, slots=True)
class Say:
    """Answers with a text, word by word."""

    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """Answers with "word1 word2 …"."""

    count: int


@dataclass(frozen=True, slots=True)
class Reason:
    """Shows reasoning, word by word."""

    text: str


@dataclass(frozen=True, slots=True)
class Invoke:
    """Asks for a tool call. Empty arguments are sent as the empty stream that some vendors send."""

    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Delay:
    """Waits before each further piece of the turn."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Fail:
    """Fails the attempt, the first `times` times that it is met (0: always)."""

    reason: str
    times: int
    retry_after_seconds: float | None


@dataclass(frozen=True, slots=True)
class Stall:
    """Falls silent for ever, the first `times` times that it is met (0: always)."""

    times: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Stops the stream without its end after some pieces, the first `times` times (0: always)."""

    pieces: int
    times: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Ends with a finish reason."""

    reason: FinishReason.ValueType


@dataclass(frozen=True, slots=True)
class Charge:
    """Reports this usage instead of the estimate."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Dump:
    """Answers with a description of the call as it arrived, in JSON."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Answers with the facts that the conversation tells, or with the one of a key."""

    key: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Stands between turns (`next`), for the wish to repeat the last one, or where the script begins or ends."""

    name: str


Directive = Say | Words | Reason | Invoke | Delay | Fail | Stall | Cut | Finish | Charge | Dump | Recall | Mark


@dataclass(frozen=True, slots=True)
class Script:
    """What to answer, turn by turn."""

    turns: tuple[tuple[Directive, ...], ...]
    repeats: bool = False
    """Whether the last turn is answered again and again."""
    is_plain: bool = True
    """Whether there is no directive in it."""

    def turn(self, number: int) -> tuple[Directive, ...] | None:
        """Return the directives of a turn, counted from 0; None when the script is over."""
        if number < len(self.turns):
            return self.turns[number]
        return self.turns[-1] if self.repeats else None


def parse(text: str) -> Script:
    """Read a script. Neighbouring lines of plain text are one text."""
    turns: list[list[Directive]] = [[]]
    plain: list[str] = []
    repeats, is_plain = False, True
    for line in text.split("\n"):
        directives = _parse_line(line) if "/" in line else None
        if directives is None:
            plain.append(line)
            continue
        is_plain = False
        _echo(plain, turns[-1])
        for directive in directives:
            match directive:
                case Mark("next"):
                    turns.append([])
                case Mark("repeat"):
                    repeats = True
                case Mark("begin"):
                    turns, repeats = [[]], False
                case Mark("end"):
                    return Script(tuple(map(tuple, turns)), repeats, is_plain)
                case _:
                    turns[-1].append(directive)
    _echo(plain, turns[-1])
    return Script(tuple(map(tuple, turns)), repeats, is_plain)


def _echo(plain: list[str], turn: list[Directive]) -> None:
    """Move collected lines into the turn. Blank lines around directives are layout, not text."""
    text = "\n".join(plain)
    plain.clear()
    if text.strip():
        turn.append(Say(text))


def _parse_line(line: str) -> list[Directive] | None:
    """Read a line of directives; None when it is text."""
    found: list[Directive] = []
    position = _behind_space(line, 0)
    while position < len(line):
        match = _DIRECTIVE.match(line, position)
        if match is None:
            return None
        try:
            directive, position = _read(line, match)
        except (ValueError, RecursionError):
            return None
        found.append(directive)
        position = _behind_space(line, position)
    return found or None


def _behind_space(line: str, position: int) -> int:
    match = _SPACE.match(line, position)
    return match.end() if match else position


def _read(line: str, match: re.Match[str]) -> tuple[Directive, int]:
    """Read one directive and return it with the position behind it. Raises: ValueError, RecursionError."""
    name, start = match[1], match.end()
    if name == "tool":
        return _read_tool(line, start)
    if name == "json":
        start = _behind_space(line, start)
        _, end = json.JSONDecoder().raw_decode(line, start)
        return Say(line[start:end]), end
    following = _DIRECTIVE.search(line, start)
    end = following.start() if following else len(line)
    return _MAKERS[name](line[start:end].strip()), end


def _read_tool(line: str, start: int) -> tuple[Directive, int]:
    match = _TOOL_NAME.match(line, start)
    if match is None:
        raise ValueError("a tool needs a name")
    end = match.end()
    if line[end : end + 1] != "{":
        return Invoke(match[1], ""), end
    _, behind = json.JSONDecoder().raw_decode(line, end)
    return Invoke(match[1], line[end:behind]), behind


def _numbers(body: str, most: int) -> list[int]:
    """Read at most `most` whole numbers. Raises: ValueError."""
    words = body.split()
    if len(words) > most or not all(word.isascii() and word.isdigit() and len(word) < 16 for word in words):
        raise ValueError("not that many whole numbers")
    return [int(word) for word in words]


def _times(body: str) -> int:
    return (_numbers(body, 1) or [0])[0]


def _words(body: str) -> Words:
    (count,) = _numbers(body, 1)
    if count > MAX_WORDS:
        raise ValueError("too many words")
    return Words(count)


def _delay(body: str) -> Delay:
    (milliseconds,) = _numbers(body, 1)
    return Delay(min(milliseconds, MAX_DELAY_MS) / 1000)


def _fail(body: str) -> Fail:
    reason, *rest = body.split()
    reason = reason if reason.startswith("PROVIDER_") else f"PROVIDER_{reason}"
    if reason not in CLASSES or len(rest) > 2:
        raise ValueError("not a reason")
    retry_after = float(rest[1]) if len(rest) == 2 else None
    if retry_after is not None and not 0 <= retry_after <= 86_400:
        raise ValueError("not a delay")
    return Fail(reason, _times(" ".join(rest[:1])), retry_after)


def _cut(body: str) -> Cut:
    pieces, times = [*_numbers(body, 2), 0][:2]
    return Cut(pieces, times)


def _finish(body: str) -> Finish:
    if body not in _FINISH:
        raise ValueError("not a finish reason")
    return Finish(_FINISH[body])


def _usage(body: str) -> Charge:
    numbers = _numbers(body, 4)
    if not numbers:
        raise ValueError("no usage")
    return Charge(*[*numbers, 0, 0, 0][:4])


def _recall(body: str) -> Recall:
    (key,) = body.split() or [""]
    return Recall(key)


def _garbage(body: str) -> Invoke:
    (name,) = body.split()
    return Invoke(name, _BROKEN_JSON)


def _bare(directive: Directive) -> Callable[[str], Directive]:
    def make(body: str) -> Directive:
        if body:
            raise ValueError("takes no argument")
        return directive

    return make


_MAKERS: dict[str, Callable[[str], Directive]] = {
    "say": Say,
    "words": _words,
    "reasoning": Reason,
    "delay": _delay,
    "fail": _fail,
    "stall": lambda body: Stall(_times(body)),
    "cut": _cut,
    "finish": _finish,
    "usage": _usage,
    "garbage": _garbage,
    "dump": _bare(Dump()),
    "recall": _recall,
    **{name: _bare(Mark(name)) for name in ("next", "repeat", "begin", "end")},
}
