"""The models that a remote server lists, made into models of the catalog. What servers say is untrusted. Pure.

Above: the registry. A model keeps what it says of capabilities, limits and prices; its id gets the server's name in
front, and what only the daemon can know of it is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from behest.v1.model_pb2 import Model
from behestd.errors import InvalidRequest

MAX_MODELS = 1_000
"""Most models of one server."""
MAX_ID_BYTES = 256
_MAX_SEGMENTS = 6
"""Daemons that are registered with each other list each other's models: longer ids are such echoes, and left out."""
_LIMITS = ("context_window_tokens", "max_output_tokens", "max_prompt_cache_markers", "embedding_dimensions")
_PRICES = ("input_micro_usd", "output_micro_usd", "cached_input_micro_usd", "cache_write_micro_usd")


def catalogued(server_name: str, listed: Iterable[Model], *, chat: bool, embeddings: bool) -> tuple[Model, ...]:
    """Make the catalog's models of a server of those that it lists, as far as it offers what they do, by id.

    Raises InvalidRequest for a name that is none or comes twice, figures below 0, and too many models.
    """
    made: dict[str, Model] = {}
    for index, model in enumerate(listed):
        path = f"models[{index}]"
        name = f"{server_name}/{model.id}"
        if not model.id or not model.id.isprintable() or " " in model.id or len(name.encode()) > MAX_ID_BYTES:
            raise InvalidRequest(f"{path}.id", f"must be 1 to {MAX_ID_BYTES} bytes with the server's name, no spaces")
        if name in made:
            raise InvalidRequest(f"{path}.id", "is listed twice")
        _check_figures(path, model)
        if name.count("/") < _MAX_SEGMENTS and (taken := _taken(model, name, chat, embeddings)) is not None:
            made[name] = taken
    if len(made) > MAX_MODELS:
        raise InvalidRequest("models", f"are {len(made)}, the limit is {MAX_MODELS}")
    return tuple(made[name] for name in sorted(made))


def is_same(one: Sequence[Model], other: Sequence[Model]) -> bool:
    """Whether two listings say the same of what lasts."""
    return [_lasting(model) for model in one] == [_lasting(model) for model in other]


def _lasting(model: Model) -> Model:
    made = Model()
    made.CopyFrom(model)
    for name in ("health", "is_default", "paused"):
        made.ClearField(name)
    return made


def kept(listed: Iterable[Model]) -> tuple[Model, ...]:
    """What is recorded of a listing: what does not change from one moment to the next."""
    return tuple(map(_lasting, listed))


def _taken(model: Model, name: str, chat: bool, embeddings: bool) -> Model | None:
    """The catalog's model, None for one that can do nothing of what is offered."""
    made = _lasting(model)
    made.id, made.provider_id = name, name.partition("/")[0]
    made.capabilities.chat = chat and model.capabilities.chat
    made.capabilities.embeddings = embeddings and model.capabilities.embeddings
    return made if made.capabilities.chat or made.capabilities.embeddings else None


def _check_figures(path: str, model: Model) -> None:
    for name in _LIMITS:
        if getattr(model.limits, name) < 0:
            raise InvalidRequest(f"{path}.limits.{name}", "is negative")
    for index, price in enumerate(model.prices):
        for name in _PRICES:
            if getattr(price, name) < 0:
                raise InvalidRequest(f"{path}.prices[{index}].{name}", "is negative")
