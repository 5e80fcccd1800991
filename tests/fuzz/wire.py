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
MAX_DEPTH = 4
_MANY_BYTES = 2000
_STRANGE = (0, 19_000, 536_870_911)
"""Numbers that no field has, or may have."""
_KINDS = (VARINT, FIXED64, BYTES, FIXED32, 3, 4, 6, 7)
_NEVER_MADE_UP = frozenset({"address", "token_ref", "ca_ref", "certificate_ref", "key_ref", "uri"})
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


def _deep_part(levels: int) -> bytes:
    """A part in a result in a part, and so on."""
    result, parts = Part.TOOL_RESULT_FIELD_NUMBER, ToolResult.PARTS_FIELD_NUMBER
    body = b""
    for _ in range(levels):
        body = encode(result, BYTES, encode(parts, BYTES, body))
    return body


_PARTS = (_deep_part(20), _deep_part(TOO_DEEP), b"\x0a\x04\x0a\x02hi", b"\x1a\x03\x0a\x01{")
"""Bodies of a part: deep ones, a text, and JSON that is none."""


def requests(good: bytes, descriptor: Descriptor, pools: Pools) -> st.SearchStrategy[bytes]:
    """Requests around a good one. Made step by step: a strategy of all that is possible is far too large."""
    return st.composite(lambda draw: _request(draw, good, descriptor, pools))()


def _request(draw: st.DrawFn, good: bytes, descriptor: Descriptor, pools: Pools) -> bytes:
    choice = draw(st.sampled_from(range(20)))
    if choice == 0:
        return draw(st.binary(max_size=64))
    if choice == 1:
        return good + draw(st.binary(min_size=1, max_size=8))
    if choice == 2:
        return good
    fragments = b"".join(_fragment(draw, descriptor, pools) for _ in range(draw(st.integers(1, 3))))
    if choice == 3:
        return (good + fragments)[: -draw(st.integers(1, 40))]
    return fragments if choice < 6 else good + fragments


def _fragment(draw: st.DrawFn, descriptor: Descriptor, pools: Pools, depth: int = 0) -> bytes:
    """Make one field of a message, or of one within it."""
    choice = draw(st.sampled_from(range(50)))
    if not descriptor.fields or choice == 0:
        return encode(draw(st.sampled_from(_STRANGE)), BYTES, b"?")
    field = draw(st.sampled_from(list(descriptor.fields)))
    if choice == 1:
        return encode(field.number, draw(st.sampled_from(_KINDS)), draw(st.binary(max_size=9)))
    one = _value(draw, field, pools, depth)
    if field.is_repeated and len(one) < _MANY_BYTES and choice < 12:
        return one * draw(st.sampled_from(_TIMES_OVER))
    return one


def _value(draw: st.DrawFn, field: FieldDescriptor, pools: Pools, depth: int) -> bytes:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return encode(field.number, BYTES, _body(draw, field, pools, depth))
    if field.type == FieldDescriptor.TYPE_STRING:
        return encode(field.number, BYTES, _text(draw, field, pools))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return encode(field.number, BYTES, draw(st.sampled_from(_BYTES)))
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        real = struct.pack("<d", draw(st.sampled_from(_REALS)))
        is_double = field.type == FieldDescriptor.TYPE_DOUBLE
        return encode(field.number, FIXED64 if is_double else FIXED32, real if is_double else real[4:])
    numbers: Sequence[int] = _NUMBERS
    if field.type == FieldDescriptor.TYPE_ENUM and field.enum_type is not None:
        numbers = (*(value.number for value in field.enum_type.values), 99, -1, 2**31 - 1)
    elif field.containing_type.full_name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
        numbers = _TIMES if field.name == "seconds" else _NANOS
    return encode(field.number, VARINT, varint(draw(st.sampled_from(numbers))))


def _body(draw: st.DrawFn, field: FieldDescriptor, pools: Pools, depth: int) -> bytes:
    """Make the body of a message within a message."""
    inner = field.message_type
    assert inner is not None
    choice = draw(st.sampled_from(range(40)))
    if choice == 0:
        return draw(st.binary(min_size=1, max_size=6))
    if inner is Part.DESCRIPTOR and choice < 8:
        return draw(st.sampled_from(_PARTS))
    if choice < 3 or depth > MAX_DEPTH:
        return b""
    count = 1 if choice < 30 else draw(st.integers(2, 3))
    return b"".join(_fragment(draw, inner, pools, depth + 1) for _ in range(count))


def _text(draw: st.DrawFn, field: FieldDescriptor, pools: Pools) -> bytes:
    """Make the body of a text. Addresses and references are never made up: nothing is to be dialled or read."""
    known = [*pools.get(field.name, ()), ""]
    choice = draw(st.sampled_from(range(24)))
    if choice > 11 or field.name in _NEVER_MADE_UP:
        if field.name.endswith("json"):
            known += _JSON
        if field.name == "paths":
            known += _PATHS
        return draw(st.sampled_from(known)).encode()
    if choice == 0:
        return draw(st.sampled_from(_NOT_UTF8))
    if choice < 4:
        return draw(st.sampled_from(pools[""])).encode()
    if choice < 8:
        return b"x" * draw(st.sampled_from(_SIZES))
    return draw(st.sampled_from(_TRICKY)).encode()
