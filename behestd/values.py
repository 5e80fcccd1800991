"""Values: data that never changes once it is made. The decorator that the values of a run's hot path are made with.

It is `dataclasses.dataclass` to the type checker, which is what keeps them frozen: an assignment to one of their fields
is an error of `mypy --strict`. At run time they are plain, since the constructor of a frozen dataclass sets each field
through `object.__setattr__`, at several times the cost: see docs/decisions/0009.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

_Class = TypeVar("_Class", bound=type)

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, frozen: bool = False, slots: bool = False) -> Callable[[_Class], _Class]:
        """Make a class of values. They compare and hash by their fields, as frozen dataclasses do."""
        return dataclasses.dataclass(slots=slots, unsafe_hash=frozen)
