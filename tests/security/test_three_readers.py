"""What the parser reads, what the rules judge and what the tool gets are the same bytes: three readers, one text.

The other side of each comparison is written here, on the standard library, knowing nothing of ours.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from behest.v1.definition_pb2 import PermissionRule
from behestd.tools.json_text import MAX_DEPTH, JsonRefused, read
from behestd.tools.schema import Validators
from tests.attach.peer import attached
from tests.attach.peer import tool as peer_tool
from tests.core.stage import ALLOW, DENY, PURE, Stage, definition, tool
from tests.daemons import serve
from tests.runs.scenes import OPEN, events_of, only

KEYS = st.sampled_from(["n", "N", "m", "", "\\u006e", "n ", "a.b", "é", "\u200bn"])
NUMBERS = st.sampled_from(["666", "666.0", "6.66e2", "6660e-1", "-666", "667", "0", "1e999", "NaN", "0666", "6" * 400])
STRINGS = st.sampled_from(
    ['"666"', '"6\\u00366"', '"ok"', '"\\ud800"', '"\\ud83d\\ude00"', '"', '"a\nb"', '"\\x"', "'n'"]
)
SPACES = st.sampled_from(["", " ", "\n", "\t", "\u00a0", "\ufeff", "/**/"])


def texts() -> st.SearchStrategy[str]:
    """Texts that are JSON, nearly JSON, and JSON that two readers could read in two ways."""
    scalars = NUMBERS | STRINGS | st.sampled_from(["true", "null", "True", "", "[]", "{}"])
    values = st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda each: f"[{','.join(each)}]")
            | st.lists(st.tuples(KEYS, inner), max_size=3).map(written)
        ),
        max_leaves=8,
    )
    objects = st.lists(st.tuples(KEYS, values), max_size=4).map(written)
    return st.builds(lambda before, text, after: before + text + after, SPACES, objects | values, SPACES)


def written(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}"


def plainly(text: str) -> Any:
    """Read a text by the standard library alone. Raises ValueError for all that should not be taken."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def never(name: str) -> None:
        raise ValueError(name)

    value = json.loads(text, object_pairs_hook=distinct, parse_constant=never)
    json.dumps(value, ensure_ascii=False).encode()
    return value


@given(texts())
@example('{"n":1,"\\u006e":666}')
@example('{"n":667,"n":666}')
@example("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
@settings(max_examples=300, deadline=None)
def test_the_parser_reads_what_the_standard_library_reads_and_nothing_twice(text: str) -> None:  # S11
    try:
        ours = read(text).value
    except JsonRefused:
        try:
            value = plainly(text)
        except (ValueError, RecursionError):
            return
        # Only what nests too deep is refused beyond that.
        assert text.count("[") + text.count("{") > MAX_DEPTH, value
        return
    assert ours == plainly(text)


@given(texts())
@example('{"n":6.66e2}')
@example('{"n":"6\\u00366"}')
@settings(max_examples=200, deadline=None)
def test_what_is_sent_is_to_the_byte_what_the_rules_have_judged(text: str) -> None:  # S11 S10 N03
    """A call is refused as unreadable, denied for its value, or sent as it was written: by two readers alike."""
    rules = [PermissionRule(tool="*", action=ALLOW), PermissionRule(tool="*", action=DENY, arguments={"n": "666"})]
    validate = Validators().arguments
    stage = Stage(definition(tool("act", PURE), operator_permissions=rules), given={"validate": validate})
    stage.model("", ("act", text))
    # What stands around the object is left out once, before anybody looks.
    kept = text.strip() or "{}"
    try:
        value = plainly(kept)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        assert "tool_started" not in stage.kinds
        return
    given_number = value.get("n")
    is_number = isinstance(given_number, int | float) and not isinstance(given_number, bool)
    is_forbidden = given_number == "666" or (is_number and given_number == 666)
    if "tool_started" in stage.kinds:
        started = stage.last("tool_started")
        assert started.arguments_json == kept
        assert started.args_hash == hashlib.sha256(kept.encode()).digest()
        assert not is_forbidden
    else:
        # Stricter than this reader is allowed, for look-alikes; milder is not.
        assert "tool_denied" in stage.kinds or "tool_failed" in stage.kinds


async def test_a_tool_gets_the_very_bytes_of_the_model() -> None:  # S11 N03
    """Over the wire, where nothing is written anew: spaces, escapes, order and large numbers stand as they stood."""
    arguments = [
        '{"b": 1, "a": 2}', '{ "a" :\t1 }', '{"a": 12345678901234567890123}', '{"a": 1.10}', '{"a": 1E2}',
        '{"a": "\\u0041\\u00e9"}', '{"a": "é\u200b\U0001f600"}', '{"a": "\\/"}', '{"a": -0.0}', "{}",
    ]  # fmt: skip
    async with serve(operator=OPEN) as served, attached(served.daemon.addresses[0], tools=[peer_tool("raw")]) as peer:
        for text in arguments:
            run = await served.client.run(f"/tool raw {text} /next /say done")
            call = await peer.call()
            await peer.finish(call)
            (started,) = only(await events_of(run), "tool_started")
            assert call.call_tool.arguments_json == started.arguments_json == text
            assert started.args_hash == hashlib.sha256(text.encode()).digest()
