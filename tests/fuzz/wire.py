"""Requests as bytes, good and bad, made from the descriptors of the contract: what no generated class would write.

A request is a good one with fragments behind it. A fragment is one field somewhere in the message: on the wire the last
value of a field wins, messages of one field merge and lists grow, so each fragment puts one thing wrong, or right, and
leaves the rest as it was.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from behest.v1.message_pb2 import Part, ToolResult

Pools = Mapping[str, Sequence[str]]
"""Texts worth trying by the name of the field that they are for; those of "" are for any."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
TOO_DEEP = 120
"""More than protobuf reads."""
_TIMES = (0, 1, -1, 60, 4_000_000_000, 10**11, 253_402_300_799, 253_402_300_800, -62_135_596_800, 2**63 - 1, -(2**63))
_NANOS = (0, 1, -1, 999_999_999, 1_000_000_000, 2**31 - 1, -(2**31))
_NUMBERS = (0, 1, -1, 2, 3, 1000, 1001, 2**31 - 1, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1)
_REALS = (0.0, -0.0, 0.5, 1.0, 2.0, 2.5, -1.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
_SIZES = (64, 65, 128, 129, 256, 257, 1024, 1025, 4097, 65_537, 262_145, 1_048_577)
_TIMES_OVER = (2, 2, 2, 3, 16, 17, 33, 257, 1001)
_BYTES = (b"", b"\0", b"\xff\xfe", b"x" * 31, b"x" * 32, b"x" * 33, b"x" * 262_145)
_NOT_UTF8 = (b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80")
_TRICKY = (
    "\0", "a\0b", "\x1b[31m", "\r\n", "../etc/passwd", "%s%n{0}", "\u017f", "é" * 33, "\U0001f600", "\u202e", " ", "-",
    "NaN", "0", "'; DROP TABLE runs; --", "*", "[", "[!", "a" * 64, "a" * 65,
)  # fmt: skip
_JSON = (
    "{}", "[]", "null", "", "{", '{"a": 1, "a": 2}', "[" * 40 + "]" * 40, "[" * 100_000, '{"a":' * 50_000, "NaN",
    "-Infinity", '"\\ud800"', "1e999", "9" * 5000, '{"n": 12345678901234567890}', '{"key": "it"}', '{"key": 1}',
    '{"key": "\\u0000"}', '{"type": "object"}', '{"type": "nothing"}', '{"$ref": "http://127.0.0.1:1/x"}',
    '{"$ref": "#"}', '{"pattern": "^(a+)+$"}', '{"pattern": "("}', "[" + "0," * 30_000 + "0]", "\ufeff{}", "{} {}",
)  # fmt: skip
_PATHS = ("", ".", "*", "id", "title", "labels", "labels.a", "limits.max_steps", "limits.doom_loop", "sampling.stop.0")


def varint(number: int) -> bytes:
    """Encode a number as protobuf does: negative ones as of 64 bits."""
    number &= 2**64 - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode(number: int, kind: int, body: bytes) -> bytes:
    """Encode a field: its tag, its length if it has one, its body."""
    return varint(number << 3 | kind) + (varint(len(body)) if kind == BYTES else b"") + body


def requests(good: bytes, descriptor: Descriptor, pools: Pools) -> st.SearchStrategy[bytes]:
    """Requests around a good one."""
    some = st.lists(fragments(descriptor, pools), min_size=1, max_size=3).map(b"".join)
    changed = some.map(lambda more: good + more)
    cut = st.tuples(changed, st.integers(1, 40)).map(lambda it: it[0][: -it[1]])
    return st.one_of(
        st.just(good),
        changed,
        changed,
        changed,
        some,
        cut,
        st.binary(max_size=64),
        st.binary(min_size=1, max_size=8).map(lambda more: good + more),
    )


def fragments(descriptor: Descriptor, pools: Pools, depth: int = 0) -> st.SearchStrategy[bytes]:
    """One field of a message, or of one within it."""
    unknown = st.sampled_from((0, 19_000, 536_870_911)).map(lambda number: encode(number, BYTES, b"?"))
    if not descriptor.fields:
        return unknown
    return st.one_of([_field(field, pools, depth) for field in descriptor.fields] + [unknown])


def _field(field: FieldDescriptor, pools: Pools, depth: int) -> st.SearchStrategy[bytes]:
    one = st.deferred(lambda: _values(field, pools, depth))
    other_kind = st.sampled_from((VARINT, FIXED64, BYTES, FIXED32, 3, 4, 6, 7))
    wrong = st.tuples(other_kind, st.binary(max_size=9)).map(lambda it: encode(field.number, *it))
    many = st.tuples(one, st.sampled_from(_TIMES_OVER)).map(lambda it: it[0] * it[1] if len(it[0]) < 2000 else it[0])
    choices = [one, one, one, one, one, one, wrong]
    return st.one_of([*choices, many, many] if field.is_repeated else choices)


def _values(field: FieldDescriptor, pools: Pools, depth: int) -> st.SearchStrategy[bytes]:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return _bodies(field, pools, depth).map(lambda body: encode(field.number, BYTES, body))
    if field.type == FieldDescriptor.TYPE_STRING:
        return _texts(field, pools).map(lambda body: encode(field.number, BYTES, body))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from(_BYTES).map(lambda body: encode(field.number, BYTES, body))
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        shape, kind = ("<d", FIXED64) if field.type == FieldDescriptor.TYPE_DOUBLE else ("<f", FIXED32)
        return st.sampled_from(_REALS).map(lambda real: encode(field.number, kind, struct.pack(shape, real)))
    numbers = _NUMBERS
    if field.type == FieldDescriptor.TYPE_ENUM and field.enum_type is not None:
        numbers = (*(value.number for value in field.enum_type.values), 99, -1, 2**31 - 1)
    elif field.containing_type.full_name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
        numbers = _TIMES if field.name == "seconds" else _NANOS
    return st.sampled_from(numbers).map(lambda number: encode(field.number, VARINT, varint(number)))


def _bodies(field: FieldDescriptor, pools: Pools, depth: int) -> st.SearchStrategy[bytes]:
    """Bodies of a message within a message."""
    inner = field.message_type
    assert inner is not None
    simple = [st.just(b""), st.binary(min_size=1, max_size=6)]
    if inner is Part.DESCRIPTOR:
        simple += [
            st.just(_deep_part(20)),
            st.just(_deep_part(TOO_DEEP)),
            st.just(Part(text={"text": "hi"}).SerializeToString()),
        ]
    if depth > 4:
        return st.one_of(simple)
    one = fragments(inner, pools, depth + 1)
    return st.one_of([one, one, one, st.lists(one, min_size=2, max_size=3).map(b"".join), *simple])


def _texts(field: FieldDescriptor, pools: Pools) -> st.SearchStrategy[bytes]:
    """Bodies of a text. Addresses and references are never made up: nothing is to be dialled or read for a test."""
    known = st.sampled_from([*pools.get(field.name, ()), ""])
    if field.name in ("address", "token_ref", "ca_ref", "certificate_ref", "key_ref", "uri"):
        return known.map(str.encode)
    if field.name.endswith("json"):
        known = st.one_of(known, st.sampled_from(_JSON))
    if field.name == "paths":
        known = st.one_of(known, st.sampled_from(_PATHS))
    return st.one_of(
        known.map(str.encode),
        known.map(str.encode),
        st.sampled_from(list(pools[""])).map(str.encode),
        st.sampled_from(_TRICKY).map(str.encode),
        st.sampled_from(_SIZES).map(lambda size: b"x" * size),
        st.sampled_from(_NOT_UTF8),
    )


def _deep_part(levels: int) -> bytes:
    """A part in a result in a part, and so on."""
    result, parts = Part.TOOL_RESULT_FIELD_NUMBER, ToolResult.PARTS_FIELD_NUMBER
    body = b""
    for _ in range(levels):
        body = encode(result, BYTES, encode(parts, BYTES, body))
    return body
