"""Finds out what a server's tools are good for: which calls to make, and what each can show.

Above: the checks, which ask for a sample of a kind. Below: `probe` and `schemas`. Each tool is called a few times with
its own arguments, so that a check can pick a call that runs long, or whose result tells one execution from another.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from behest.conformance import schemas
from behest.conformance.verdict import skip
from behest.v1.tool_pb2 import SideEffect
from behest.v1.tool_service_pb2 import CancelCallRequest, CancelCallResponse, ListToolsRequest, ListToolsResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from behest.conformance.probe import Probe, Reply
    from behest.conformance.schemas import Schema
    from behest.v1.message_pb2 import ToolResult
    from behest.v1.tool_pb2 import Tool

# A call that takes this long can be met while it runs.
SLOW_SECONDS = 0.4
# How long a call is given at most to show what it is; one that goes on is taken for endless, and cancelled.
SURVEY_SECONDS = 3.0
MAX_PAGES = 40
_MAY_REPEAT = {
    SideEffect.SIDE_EFFECT_UNSPECIFIED,
    SideEffect.SIDE_EFFECT_PURE,
    SideEffect.SIDE_EFFECT_IDEMPOTENT,
}
MARKER = "conformance-marker"


@dataclass(frozen=True, slots=True)
class Sample:
    """A call that can be made, and what making it has shown."""

    tool: Tool
    arguments_json: str
    reply: Reply
    # Whether its result differs each time it is executed.
    is_telling: bool = False
    # Name of an argument that comes back in the result; empty when none does.
    echoed: str = ""

    @property
    def is_endless(self) -> bool:
        """Whether it went on for longer than the survey waits."""
        return self.reply.is_open

    @property
    def is_slow(self) -> bool:
        """Whether it runs long enough to be met, and ends."""
        return self.reply.is_good and self.reply.seconds >= SLOW_SECONDS

    def __str__(self) -> str:
        return self.tool.name


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined: the server, its tools as they were listed first, their schemas, and the samples."""

    probe: Probe
    tools: tuple[Tool, ...]
    listing: str
    input_schemas: Mapping[str, Schema]
    samples: tuple[Sample, ...]
    is_stateless: bool

    def sample(self, what: str, fits: Callable[[Sample], bool]) -> Sample:
        """Return the quickest sample that fits. Raises Skipped, saying what would help, when none does."""
        found = sorted((each for each in self.samples if fits(each)), key=lambda each: each.reply.seconds)
        if not found:
            skip(f"no call {what}: name one with --call")
        return found[0]

    @property
    def good(self) -> Sample:
        """A call that ends well."""
        return self.sample("gave a result", lambda each: each.reply.is_good)

    @property
    def telling(self) -> Sample:
        """A call that ends well, with another result each time."""
        return self.sample("gave another result each time", lambda each: each.is_telling)

    @property
    def slow(self) -> Sample:
        """A call that ends well after a while; one that tells executions apart, if there is one."""
        what = f"took longer than {SLOW_SECONDS:g} s and ended"
        telling = [each for each in self.samples if each.is_slow and each.is_telling]
        return self.sample(what, lambda each: each in telling if telling else each.is_slow)

    @property
    def lasting(self) -> Sample:
        """The call that runs longest."""
        found = [each for each in self.samples if each.is_endless or each.is_slow]
        longest = max(found, key=lambda each: each.reply.seconds, default=None)
        return longest or self.sample(f"took longer than {SLOW_SECONDS:g} s", lambda each: False)

    @property
    def repeatable(self) -> Sample:
        """The call that runs longest and may be repeated: its author does not say that it may not."""
        found = [each for each in self.samples if each.is_endless and each.tool.hints.side_effect in _MAY_REPEAT]
        return found[0] if found else self.sample("goes on and may be repeated", lambda each: False)


@dataclass(frozen=True, slots=True)
class Orders:
    """What to try, as the caller says: arguments by name of a tool, and which tools may be called."""

    calls: Sequence[tuple[str, str]] = ()
    is_allowed: Callable[[str], bool] = lambda name: True


def content(reply: Reply) -> str:
    """Return what a reply says, in one text that is equal for equal results."""
    return "" if reply.result is None else said(reply.result, b"".join(reply.chunks))


def said(result: ToolResult, chunks: bytes = b"") -> str:
    """Return what a result says, in one text; chunks are the content of its last part."""
    texts = []
    for number, part in enumerate(result.parts, start=1):
        kind = part.WhichOneof("kind") or ""
        text = part.text.text if kind == "text" else part.json.json if kind == "json" else str(part)
        text += chunks.decode(errors="replace") if number == len(result.parts) else ""
        texts.append(_plain(text) if kind == "json" else text)
    return "\n".join(["error" if result.is_error else "", *texts])


async def survey(probe: Probe, orders: Orders, *, is_stateless: bool) -> Subject:
    """List the tools and try each."""
    tools, listing = await listed(probe)
    known = {tool.name: tool for tool in tools}
    compiled: dict[str, Schema] = {}
    for tool in tools:
        try:
            compiled[tool.name] = schemas.load(tool.input_schema_json)
        except schemas.SchemaInvalid:
            continue
    wanted = [(name, arguments) for name, arguments in orders.calls if name in known]
    missing = [name for name, _ in orders.calls if name not in known]
    if missing:
        listing = listing or f"--call names {', '.join(missing)}, which is not listed"
    given = {name for name, _ in wanted}
    for name, schema in compiled.items():
        made = schemas.right(schema) if name not in given and orders.is_allowed(name) else None
        if made is not None:
            wanted.append((name, json.dumps(made)))
    samples = [await _tried(probe, known[name], arguments, compiled.get(name)) for name, arguments in wanted]
    return Subject(probe, tuple(tools), listing, compiled, tuple(samples), is_stateless)


async def listed(probe: Probe, *, page_size: int = 0, name_glob: str = "") -> tuple[list[Tool], str]:
    """List all tools, and say what went wrong, if anything did."""
    tools: list[Tool] = []
    token = ""
    for _ in range(MAX_PAGES if page_size == 0 else 1_000):
        request = ListToolsRequest(page_size=page_size, page_token=token, name_glob=name_glob)
        page = await probe.unary("ToolService/ListTools", request, ListToolsResponse)
        if not page.ending.is_ok:
            return tools, f"ListTools ended with {page.ending}"
        if page_size and len(page.value.tools) > page_size:
            return tools, f"a page of {page_size} held {len(page.value.tools)} tools"
        tools.extend(page.value.tools)
        token = page.value.next_page_token
        if not token:
            return tools, ""
    return tools, "the pages have no end"


async def cancelled(probe: Probe, key: str, epoch: int = 1) -> None:
    """Tell the server that a call is not wanted, whatever it answers."""
    request = CancelCallRequest(idempotency_key=key, epoch=epoch)
    await probe.unary("ToolService/CancelCall", request, CancelCallResponse, seconds=2.0)


async def _tried(probe: Probe, tool: Tool, arguments_json: str, schema: Schema | None) -> Sample:
    request = probe.request(tool.name, arguments_json)
    limit = min(SURVEY_SECONDS, probe.seconds)
    first = await probe.call(request, seconds=limit)
    sample = Sample(tool, arguments_json, first)
    if first.is_open:
        await cancelled(probe, request.idempotency_key)
    if not first.is_good:
        return sample
    second = await probe.call(probe.request(tool.name, arguments_json))
    sample = replace(sample, is_telling=second.is_good and content(first) != content(second))
    return replace(sample, echoed=await _echoed(probe, sample, schema)) if schema is not None else sample


async def _echoed(probe: Probe, sample: Sample, schema: Schema) -> str:
    """Find an argument that the result repeats."""
    given = _arguments(sample.arguments_json)
    for name in schemas.free_texts(schema, given)[:3]:
        reply = await probe.call(probe.request(sample.tool.name, json.dumps({**given, name: MARKER})))
        if reply.is_good and MARKER in content(reply):
            return name
    return ""


def changed(sample: Sample, **arguments: Any) -> str:
    """Return the arguments of a sample with some of them changed."""
    return json.dumps({**_arguments(sample.arguments_json), **arguments}, ensure_ascii=False)


def _arguments(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _plain(text: str) -> str:
    """Return JSON in one way of writing it; what is no JSON stays."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, sort_keys=True)
    except (ValueError, RecursionError):
        return text
