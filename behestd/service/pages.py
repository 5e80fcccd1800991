"""Pages of lists: how long one is, and tokens that say where the next one begins.

Above it are the handlers of list methods; below it `errors`. A token holds the position after which the next
page begins and is bound to the method, the namespace and the filters: used with any other, or made up, it is
REQUEST_PAGE_TOKEN_INVALID. It is no secret and grants nothing, since a list looks only into its caller's
namespace.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from behestd.errors import InvalidRequest
from behestd.service.validate import not_negative

if TYPE_CHECKING:
    from google.protobuf.message import Message

DEFAULT_SIZE = 50
MAX_SIZE = 1000
MAX_TOKEN_LENGTH = 2048
CHECK_BYTES = 16

Position = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """The page asked for. `after` is the position that the page before ended with; None: from the start.

    A list that reads one entry more than `size` knows whether there is a next page.
    """

    size: int
    after: Position | None
    binding: bytes

    def token(self, *position: int | str) -> str:
        """Return the token of the page that begins after a position, to be given back in `after`."""
        body = json.dumps(position, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(_check(self.binding, body) + body).decode().rstrip("=")


def page_of(request: Any, namespace: str, kinds: tuple[type[int | str], ...]) -> Page:
    """Read which page a list request asks for, by its `page_size` and `page_token`.

    `kinds` are the types of the parts of a position of this list.
    The size is 50 by default and at most 1000. Raises InvalidRequest for a negative one, and of reason
    REQUEST_PAGE_TOKEN_INVALID for a token of another list, namespace or filter.
    """
    not_negative("page_size", request.page_size)
    filters: Message = type(request)()
    filters.CopyFrom(request)
    filters.ClearField("page_size")
    filters.ClearField("page_token")
    bound = (filters.DESCRIPTOR.full_name.encode(), namespace.encode())
    binding = b"\0".join((*bound, filters.SerializeToString(deterministic=True)))
    after = _position(request.page_token, binding, kinds) if request.page_token else None
    return Page(min(request.page_size, MAX_SIZE) or DEFAULT_SIZE, after, binding)


def _check(binding: bytes, body: bytes) -> bytes:
    seed = len(binding).to_bytes(8, "big")
    return hashlib.sha256(seed + binding + body).digest()[:CHECK_BYTES]


def _position(token: str, binding: bytes, kinds: tuple[type[int | str], ...]) -> Position:
    try:
        if len(token) > MAX_TOKEN_LENGTH:
            raise ValueError
        found = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        check, body = found[:CHECK_BYTES], found[CHECK_BYTES:]
        if check != _check(binding, body):
            raise ValueError
        position = json.loads(body)
        if not isinstance(position, list) or tuple(map(type, position)) != kinds:
            raise ValueError
    except ValueError:
        raise InvalidRequest(
            "page_token", "was not made by this list with these filters", reason="REQUEST_PAGE_TOKEN_INVALID"
        ) from None
    return tuple(position)
