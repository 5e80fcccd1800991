"""Keys of providers, as a type that prints as `***`. Used by every adapter that needs one."""

from __future__ import annotations


class Secret:
    """A secret text. It shows itself to `reveal` alone: not in repr, str, format, logs, pickles or comparisons."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, for the one place that sends it."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a secret is not copied out of the process")
