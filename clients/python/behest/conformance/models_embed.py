"""Checks of embeddings: count, order, lengths, usage.

Above: `models`, the table. Below: `models_survey`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import grpc

from behest.conformance.verdict import expect
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from behest.conformance.models_survey import Subject

TEXTS = ("a cat sat on the mat", "shares fell on Monday", "le café est fermé", "四月は君の嘘")
MANY = 256
NEAR = 0.999
"""How alike two vectors of one text are at least: batches may round otherwise."""


async def count(subject: Subject) -> str:
    """Each text has one vector, also where there are many."""
    few = await subject.embed(*TEXTS)
    expect(len(few.embeddings) == len(TEXTS), f"{len(few.embeddings)} vectors for {len(TEXTS)} texts")
    many = await subject.embed(*(f"text {number}" for number in range(MANY)))
    expect(len(many.embeddings) == MANY, f"{len(many.embeddings)} vectors for {MANY} texts")
    return f"{MANY} of {MANY}"


async def lengths(subject: Subject) -> str:
    """All vectors have the length that the model tells, and hold numbers."""
    given = await subject.embed(*TEXTS)
    found = {len(each.values) for each in given.embeddings}
    expect(len(found) == 1 and 0 not in found, f"vectors have {sorted(found)} numbers")
    told = subject.model(subject.embedding_model).limits.embedding_dimensions
    expect(not told or found == {told}, f"vectors have {sorted(found)} numbers, the model says {told}")
    is_finite = all(math.isfinite(value) for each in given.embeddings for value in each.values)
    expect(is_finite, "a vector holds what is no number")
    return f"{found.pop()} numbers"


async def order(subject: Subject) -> str:
    """Vectors come in the order of the texts: each is that of its text alone."""
    together = [list(each.values) for each in (await subject.embed(*TEXTS)).embeddings]
    for index, text in enumerate(TEXTS):
        given = await subject.embed(text)
        expect(len(given.embeddings) == 1, f"{len(given.embeddings)} vectors for 1 text")
        alone = list(given.embeddings[0].values)
        alike = [_alike(alone, each) for each in together]
        is_own = len(alike) == len(TEXTS) and alike[index] >= NEAR and alike[index] >= max(alike) - 1e-6
        expect(is_own, f"vector {index} is not that of text {index} alone")
    return f"{len(TEXTS)} texts"


async def dimensions(subject: Subject) -> str:
    """A length that is asked for is kept, or refused."""
    whole = len((await subject.embed("a")).embeddings[0].values)
    request = EmbedRequest(model=subject.embedding_model, inputs=["a"], dimensions=max(whole // 2, 1))
    got = await subject.probe.unary("EmbeddingService/Embed", request, EmbedResponse)
    if got.ending.is_ok:
        found = len(got.value.embeddings[0].values) if got.value.embeddings else 0
        expect(found == request.dimensions, f"{request.dimensions} numbers were asked for, {found} came")
        return f"{found} of {whole} numbers"
    codes = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    expect(got.ending.code in codes, f"{request.dimensions} numbers were asked for, which ended with {got.ending}")
    return f"refused: {got.ending}"


async def usage(subject: Subject) -> str:
    """What was consumed is told."""
    given = await subject.embed(*TEXTS)
    tokens = given.usage.input_tokens
    expect(tokens > 0, f"{tokens} tokens are told of {len(TEXTS)} texts")
    return f"{tokens} tokens"


def _alike(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of two vectors, 0 where they cannot be compared."""
    lengths = math.hypot(*one) * math.hypot(*other)
    if len(one) != len(other) or not lengths or not math.isfinite(lengths):
        return 0.0
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths
