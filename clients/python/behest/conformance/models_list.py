"""Checks of the list of models: names, order, pages, what they can do, figures.

Above: `models`, the table. Below: `models_survey`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from behest.conformance.models_survey import listed
from behest.conformance.verdict import expect, shown, skip
from behest.v1.model_pb2 import ModelCapabilities
from behest.v1.model_service_pb2 import GetModelRequest, GetModelResponse, ListModelsRequest, ListModelsResponse

if TYPE_CHECKING:
    from behest.conformance.models_survey import Subject
    from behest.v1.model_pb2 import Model

NAME_BYTES = 200
_LIMITS = ("context_window_tokens", "max_output_tokens", "max_prompt_cache_markers", "embedding_dimensions")
_PRICES = ("input_micro_usd", "output_micro_usd", "cached_input_micro_usd", "cache_write_micro_usd")


async def answers(subject: Subject) -> str:
    """ListModels answers, and lists something."""
    expect(not subject.listing, subject.listing)
    expect(bool(subject.models), "no models are listed")
    return f"{len(subject.models)} models"


async def names(subject: Subject) -> str:
    """Names are there, can be printed, and are unique."""
    found = [model.id for model in subject.models]
    bad = [name for name in found if not name or not name.isprintable() or " " in name or len(name) > NAME_BYTES]
    expect(not bad, f"{shown(repr(bad[:1]))} is no name of 1 to {NAME_BYTES} characters without spaces")
    twice = sorted({name for name in found if found.count(name) > 1})
    expect(not twice, f"{twice[:1]} is listed twice")
    return ", ".join(found[:4]) + (" …" if len(found) > 4 else "")


async def order(subject: Subject) -> str:
    """Models are ordered by id."""
    found = [model.id for model in subject.models]
    expect(found == sorted(found), "not ordered by id: " + ", ".join(found[:4]))
    return "by id"


async def pages(subject: Subject) -> str:
    """Pages of one model give the same list, and a negative size is refused."""
    singly, problem = await listed(subject.probe, page_size=1)
    expect(not problem, problem)
    found, wanted = [model.id for model in singly], [model.id for model in subject.models]
    expect(found == wanted, f"{len(wanted)} models at once, {len(found)} in pages of one")
    request = ListModelsRequest(page_size=-1)
    negative = await subject.probe.unary("ModelService/ListModels", request, ListModelsResponse)
    is_refused = negative.ending.code is grpc.StatusCode.INVALID_ARGUMENT
    expect(is_refused, f"page_size -1 ended with {negative.ending}, not INVALID_ARGUMENT")
    return f"{len(found)} pages of one"


async def capabilities(subject: Subject) -> str:
    """Each model can do something, and a filter lists those that can."""
    for model in subject.models:
        is_able = model.capabilities.chat or model.capabilities.embeddings
        expect(is_able, f"{shown(model.id, 40)} neither chats nor makes embeddings")
    for name in ("chat", "embeddings"):
        found, problem = await listed(subject.probe, capabilities=ModelCapabilities(**{name: True}))
        expect(not problem, problem)
        wanted = [model.id for model in subject.models if getattr(model.capabilities, name)]
        expect(
            [model.id for model in found] == wanted, f"{len(wanted)} models have {name}, a filter lists {len(found)}"
        )
    return "chat and embeddings"


async def figures(subject: Subject) -> str:
    """Limits and prices are not below 0."""
    for model in subject.models:
        for name in _LIMITS:
            figure = getattr(model.limits, name)
            expect(figure >= 0, f"{name} of {shown(model.id, 40)} is {figure}")
        for price in model.prices:
            for name in _PRICES:
                expect(getattr(price, name) >= 0, f"{name} of {shown(model.id, 40)} is {getattr(price, name)}")
    return f"{len(subject.models)} models"


async def get(subject: Subject) -> str:
    """GetModel, where there is one, returns what is listed."""
    for model in subject.models[:10]:
        request = GetModelRequest(model=model.id)
        got = await subject.probe.unary("ModelService/GetModel", request, GetModelResponse)
        if got.ending.code is grpc.StatusCode.UNIMPLEMENTED:
            skip("the server has no GetModel, which it need not")
        expect(got.ending.is_ok, f"GetModel {shown(model.id, 40)} ended with {got.ending}")
        expect(_lasting(got.value.model) == _lasting(model), f"GetModel {shown(model.id, 40)} is not what is listed")
    return "as listed"


async def stable(subject: Subject) -> str:
    """The same list comes again, after all the calls that were made."""
    again, problem = await listed(subject.probe)
    expect(not problem, problem)
    is_same = [_lasting(model) for model in again] == [_lasting(model) for model in subject.models]
    expect(is_same, "another list when the models are listed again")
    return "the same twice"


def _lasting(model: Model) -> bytes:
    """What of a model does not change from one moment to the next."""
    return type(model)(
        id=model.id, display_name=model.display_name, capabilities=model.capabilities, limits=model.limits
    ).SerializeToString(deterministic=True)
