"""The handing over of a composed call: what is sent is what was decided on, and recovery composes it again alike."""

from __future__ import annotations

from hashlib import sha256

from behestd.core.composed import Composed
from behestd.core.window import compose
from tests.core.stage import Stage


def test_what_is_handed_over_is_what_was_hashed_and_what_composing_again_gives() -> None:
    composed = Composed()
    stage = Stage(given={"composed": composed})
    attempt = stage.run.step.open
    assert attempt is not None

    window = composed.take(stage.run.step.number, attempt.number)

    assert window is not None
    data = window.chat.SerializeToString(deterministic=True)
    assert sha256(data).digest() == stage.last("model_requested").request_hash
    assert window == compose(stage.run, (), attempt.endpoint)


def test_a_window_is_taken_once_and_for_its_own_attempt_alone() -> None:
    composed = Composed()
    stage = Stage()
    attempt = stage.run.step.open
    assert attempt is not None
    window = compose(stage.run, (), attempt.endpoint)

    assert composed.take(1, 1) is None
    composed.keep(1, 1, window)
    assert composed.take(1, 2) is None
    assert composed.take(1, 1) is window
    assert composed.take(1, 1) is None


def test_a_later_attempt_takes_the_place_of_an_earlier_one() -> None:
    composed = Composed()
    stage = Stage()
    attempt = stage.run.step.open
    assert attempt is not None
    window = compose(stage.run, (), attempt.endpoint)
    composed.keep(1, 1, window)
    composed.keep(1, 2, window)

    assert composed.take(1, 1) is None
    assert composed.take(1, 2) is window
