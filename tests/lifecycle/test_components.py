"""Components: the order of their start and their end, what a failure leaves behind, and what is wrong with a list."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behestd.lifecycle import Component, Handle, Lifecycle, Scope, State, WrongComposition, dependents, ordered
from tests import daemons

Needs = dict[str, list[str]]


@st.composite
def graphs(draw: st.DrawFn) -> Needs:
    """Components that need only such as come before them in some order, told in another one."""
    names = [f"c{number}" for number in range(draw(st.integers(0, 8)))]
    needs = {
        name: draw(st.lists(st.sampled_from(names[:index]), unique=True)) if index else []
        for index, name in enumerate(names)
    }
    told = draw(st.permutations(names))
    return {name: needs[name] for name in told}


class Parts:
    """Components that note what becomes of them."""

    def __init__(self, needs: Needs, failing: str = "", stubborn: Sequence[str] = ()) -> None:
        self.noted: list[str] = []
        self.handles: dict[str, Handle[str]] = {name: Handle(name) for name in needs}
        self._needs = needs
        self._failing = failing
        self._stubborn = stubborn

    def components(self) -> list[Component[Any]]:
        """All of them."""
        return [self._component(name) for name in self._needs]

    def lifecycle(self) -> Lifecycle:
        """Their life."""
        return Lifecycle(self.components(), lambda: 0)

    def _component(self, name: str) -> Component[str]:
        async def start(scope: Scope) -> str:
            if name == self._failing:
                raise RuntimeError("as the test said")
            self.noted.append(f"start {name}")
            return "".join([*(scope[self.handles[other]] for other in self._needs[name]), name])

        async def stop(value: str, left_seconds: float) -> None:
            self.noted.append(f"stop {name}")
            if name in self._stubborn:
                await asyncio.Event().wait()

        return Component(
            self.handles[name],
            start,
            [self.handles[other] for other in self._needs[name]],
            quiet=lambda value: self.noted.append(f"quiet {name}"),
            stop=stop,
            stop_seconds=0.05 if name in self._stubborn else 20.0,
        )


def spawn(work: Any) -> asyncio.Task[None]:
    """Make a task, as a task group would."""
    return asyncio.get_running_loop().create_task(work)


# --- the order (pure) ---


@given(graphs())
def test_each_comes_after_what_it_needs(needs: Needs) -> None:  # C133
    order = ordered(needs)
    assert sorted(order) == sorted(needs)
    for place, name in enumerate(order):
        assert set(needs[name]) <= set(order[:place])


@given(graphs())
def test_an_order_that_is_right_stays_as_it_is(needs: Needs) -> None:  # C133
    right = {name: needs[name] for name in ordered(needs)}
    assert ordered(right) == tuple(right)


@given(graphs(), st.data())
def test_a_cycle_is_named_from_end_to_end(needs: Needs, data: st.DataObject) -> None:  # C133
    length = data.draw(st.integers(1, 4))
    ring = [f"ring{number}" for number in range(length)]
    more = {name: [ring[(place + 1) % length], *needs] for place, name in enumerate(ring)}
    with pytest.raises(WrongComposition) as caught:
        ordered({**needs, **more})
    named = str(caught.value).split(" needs ")
    assert named[0] == named[-1]
    assert set(named) == set(ring)


@given(graphs())
def test_everything_that_is_missing_is_named(needs: Needs) -> None:  # C133
    with pytest.raises(WrongComposition) as caught:
        ordered({**needs, "a": ["nobody"], "b": ["nothing", "a"]})
    assert str(caught.value) == "a needs nobody, which is not there; b needs nothing, which is not there"


@given(graphs(), st.data())
def test_dependents_are_those_that_cannot_start_without(needs: Needs, data: st.DataObject) -> None:  # C133
    if not needs:
        return
    name = data.draw(st.sampled_from(sorted(needs)))
    found = set(dependents(needs, name))
    without: set[str] = set()
    for each in ordered(needs):
        if each != name and set(needs[each]) <= without:
            without.add(each)
    assert found == set(needs) - without - {name}


# --- lives ---


@given(graphs())
def test_components_stop_in_the_reverse_of_their_start_and_begin_nothing_new_before(needs: Needs) -> None:  # C133
    parts = Parts(needs)

    async def live() -> None:
        lifecycle = parts.lifecycle()
        await lifecycle.start(spawn)
        assert all(status.state is State.RUNNING for status in lifecycle.statuses())
        for name, handle in parts.handles.items():
            assert lifecycle[handle].endswith(name)
        await lifecycle.stop(1.0)
        assert all(status.state is State.STOPPED for status in lifecycle.statuses())

    asyncio.run(live())
    started = [word.removeprefix("start ") for word in parts.noted if word.startswith("start ")]
    back = started[::-1]
    assert parts.noted == [f"start {name}" for name in started] + [f"quiet {name}" for name in back] + [
        f"stop {name}" for name in back
    ]


@given(graphs(), st.data())
def test_one_that_does_not_start_skips_its_dependents_and_what_had_started_is_undone(  # C133
    needs: Needs, data: st.DataObject
) -> None:
    if not needs:
        return
    failing = data.draw(st.sampled_from(sorted(needs)))
    parts = Parts(needs, failing)

    async def live() -> None:
        lifecycle = parts.lifecycle()
        with pytest.raises(RuntimeError, match="as the test said") as caught:
            await lifecycle.start(spawn)
        states = {status.name: status.state for status in lifecycle.statuses()}
        skipped = dependents(needs, failing)
        assert caught.value.__notes__ == [f"{failing} did not start; skipped: {', '.join(skipped) or 'nothing'}"]
        assert states[failing] is State.FAILED
        assert {name for name, state in states.items() if state is State.SKIPPED} == set(skipped)
        assert {states[word.removeprefix("start ")] for word in parts.noted if "start " in word} <= {State.STOPPED}

    asyncio.run(live())
    started = [word.removeprefix("start ") for word in parts.noted if word.startswith("start ")]
    assert parts.noted == [f"start {name}" for name in started] + [f"stop {name}" for name in reversed(started)]


async def test_one_that_does_not_stop_in_time_holds_up_no_other() -> None:  # C133
    parts = Parts({"first": [], "second": ["first"]}, stubborn=["second"])
    lifecycle = parts.lifecycle()
    await lifecycle.start(spawn)
    await lifecycle.stop(0.0)
    assert parts.noted[-2:] == ["stop second", "stop first"]
    assert [status.state for status in lifecycle.statuses()] == [State.STOPPED, State.FAILED]


async def test_a_component_reaches_only_what_it_says_it_needs() -> None:  # C133
    known, unknown = Handle[str]("known"), Handle[str]("unknown")

    async def make(scope: Scope) -> str:
        return "made"

    async def peep(scope: Scope) -> str:
        return scope[known]

    lifecycle = Lifecycle([Component(known, make), Component(unknown, peep)], lambda: 0)
    with pytest.raises(WrongComposition, match="unknown uses known, which is not among its needs"):
        await lifecycle.start(spawn)


async def test_tasks_of_a_component_end_with_it() -> None:
    handle, ended = Handle[str]("worker"), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("worker")

    async def start(scope: Scope) -> str:
        scope.spawn(work())
        return "at work"

    lifecycle = Lifecycle([Component(handle, start, stop_seconds=0.05)], lambda: 0)
    await lifecycle.start(spawn)
    await lifecycle.stop(0.0)
    assert ended == ["worker"]


async def test_the_daemon_itself_is_in_order() -> None:  # C133
    async with daemons.serve() as served:
        lifecycle = served.daemon.lifecycle
        started = [status.name for status in lifecycle.statuses()]
        assert {status.state for status in lifecycle.statuses()} == {State.RUNNING}
    assert {status.state for status in lifecycle.statuses()} == {State.STOPPED}
    places = {name: place for place, name in enumerate(started)}
    assert places["store"] < places["log"] < places["house"] < places["runtime"] < places["listeners"]
    # Addresses are taken before any work is done, and answers come last.
    assert places["listeners"] < min(places[name] for name in ("cleaning", "servers", "tool_calls", "runs"))
    assert max(places[name] for name in ("servers", "tool_calls", "runs", "reloads")) < places["serving"]
