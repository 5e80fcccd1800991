"""Names of MCP tools as names of the contract, and back.

Pure. Above: `offer`. MCP lets a name be any text; the contract takes [A-Za-z0-9_-]{1,64}. Every other character is
written as `_x`, its code point in hexadecimal, and `_`; an underscore before an x is written so too, which makes the
mapping reversible: `files.read` is `files_x2e_read`, `a_x` is `a_x5f_x`. Guarantee: different names stay different.
"""

from __future__ import annotations

import re

_UNFIT = re.compile(r"[^A-Za-z0-9_-]|_(?=x)")
_ESCAPE = re.compile(r"_x([0-9a-f]+)_")


def encoded(name: str, prefix: str = "") -> str:
    """Write the name of an MCP tool as one of the contract, behind a prefix. It may be too long: see `offer`."""
    return prefix + _UNFIT.sub(lambda match: f"_x{ord(match[0]):x}_", name)


def decoded(name: str, prefix: str = "") -> str:
    """Read the MCP name out of what `encoded` wrote with the same prefix."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name.removeprefix(prefix))
