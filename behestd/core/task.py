"""The task of a reasoning graph as an immutable value: what each node starts from, and what it becomes. Pure.

Above: `nodes`, which folds what visits add, and the room `reasoning`, which shows tasks to models and reads replies
into deltas. Below: `task_entries`, `task_limits`. Nearly everything is added to and never changed, so that what
parallel nodes have added can be brought together; where two differ all the same (the plan, the domain, a score), a rule
says which holds. No rule asks who finished first: the result depends on the states and their order alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

from behest.v1.task_pb2 import (
    Action,
    Constraint,
    Fact,
    Goal,
    Observation,
    Plan,
    Provenance,
    Reflection,
    StepStatus,
    Task,
    TaskArtifact,
    TaskContext,
    TaskDelta,
    TaskMetadata,
    TaskStep,
)
from behestd.core import task_entries as entry
from behestd.core.state import replace
from behestd.core.task_entries import Entry, is_answer, key, numbered
from behestd.core.task_limits import CONSTRAINTS, CRITERIA, NAME_BYTES, PLAN_BYTES, cut, newest
from behestd.values import dataclass

_DONE = (StepStatus.STEP_STATUS_COMPLETED, StepStatus.STEP_STATUS_SKIPPED)


@dataclass(frozen=True)
class TaskState:
    """A task at one moment. Its lists are oldest first."""

    goal: Goal = field(default_factory=Goal)
    constraints: tuple[Constraint, ...] = ()
    domain: str = ""
    domain_provenance: Provenance | None = None
    """None: the domain was given with the task."""
    input: str = ""
    plan: Plan | None = None
    facts: tuple[Fact, ...] = ()
    steps: tuple[TaskStep, ...] = ()
    observations: tuple[Observation, ...] = ()
    actions: tuple[Action, ...] = ()
    reflections: tuple[Reflection, ...] = ()
    artifacts: tuple[TaskArtifact, ...] = ()
    iteration: int = 1
    omitted: int = 0
    """How many entries were left out to keep the limits."""

    @property
    def answer(self) -> TaskArtifact | None:
        """The latest answer; None when there is none."""
        return next((artifact for artifact in reversed(self.artifacts) if is_answer(artifact)), None)

    @property
    def is_achieved(self) -> bool:
        """Whether the goal is achieved: there is an answer."""
        return self.answer is not None

    @property
    def next_step(self) -> int | None:
        """The place of the first step of the plan that is not done; None when there is none."""
        steps = self.plan.steps if self.plan is not None else ()
        return next((place for place, step in enumerate(steps) if step.status not in _DONE), None)

    @property
    def score(self) -> float | None:
        """What was judged last, from 0 to 1; None when nothing was."""
        sources = (step.provenance for step in reversed(self.steps))
        return next((source.score for source in sources if source.HasField("score")), None)


# --- from and to the contract ---


def of_message(task: Task) -> TaskState:
    """Read a task. Its observations have the numbers from 1, or from where those end that were left out."""
    context = task.context
    first = task.observations[0].sequence if task.observations else 1
    return TaskState(
        goal=task.goal,
        constraints=tuple(task.constraints),
        domain=context.domain,
        domain_provenance=context.domain_provenance if context.HasField("domain_provenance") else None,
        input=context.input,
        plan=task.plan if task.HasField("plan") else None,
        facts=tuple(context.facts),
        steps=tuple(task.steps),
        observations=_numbered(task.observations, first if 1 <= first <= task.metadata.omitted + 1 else 1),
        actions=tuple(task.actions),
        reflections=tuple(task.reflections),
        artifacts=tuple(task.artifacts),
        iteration=max(task.metadata.iteration, 1),
        omitted=task.metadata.omitted,
    )


def given(task: Task) -> TaskState:
    """Read a task that a run is given, within the limits.

    What in it comes from visits comes from those of another run: it is given here. The scores of artifacts hold.
    """
    state = of_message(task)
    unmarked = {name: tuple(entry.unmarked(held) for held in getattr(state, name)) for name in entry.TEXTS}
    plan = entry.unmarked(state.plan) if state.plan is not None else None
    return _limited(replace(state, domain_provenance=None, plan=plan, **unmarked))


def message(state: TaskState) -> Task:
    """Write a task as the contract has it."""
    context = TaskContext(
        facts=state.facts, domain=state.domain, input=state.input, domain_provenance=state.domain_provenance
    )
    return Task(
        goal=state.goal,
        constraints=state.constraints,
        context=context,
        plan=state.plan,
        steps=state.steps,
        observations=state.observations,
        actions=state.actions,
        reflections=state.reflections,
        artifacts=state.artifacts,
        metadata=TaskMetadata(iteration=state.iteration, omitted=state.omitted),
    )


def _numbered(observations: Sequence[Observation], first: int) -> tuple[Observation, ...]:
    return tuple(numbered(observation, number) for number, observation in enumerate(observations, first))


# --- what a visit adds ---


def extended(state: TaskState, delta: TaskDelta, provenance: Provenance) -> TaskState:
    """The task with what a visit adds to it, which carries where it comes from; what carries that already keeps it.

    Texts that are too long are cut, and the oldest entries are left out where there are too many. A change of what is
    not there changes nothing.
    """
    mark = entry.mark_of(provenance)
    next_number = state.observations[-1].sequence + 1 if state.observations else 1
    artifacts = entry.with_scores(state.artifacts, delta.artifact_scores)
    return _limited(
        replace(
            state,
            goal=_with_criteria(state.goal, delta.success_criteria),
            constraints=_with_constraints(state.constraints, delta.constraints),
            domain=cut(delta.domain, NAME_BYTES) or state.domain,
            domain_provenance=mark if delta.domain else state.domain_provenance,
            plan=entry.changed_plan(state.plan, delta, mark),
            facts=(*state.facts, *(entry.fact(new, mark) for new in delta.facts)),
            steps=(*state.steps, *(entry.step(new, provenance) for new in delta.steps)),
            observations=(
                *state.observations,
                *(entry.observation(new, number, mark) for number, new in enumerate(delta.observations, next_number)),
            ),
            actions=(*state.actions, *(entry.action(new, mark) for new in delta.actions)),
            reflections=(*state.reflections, *(entry.reflection(new, mark) for new in delta.reflections)),
            artifacts=(*artifacts, *(entry.artifact(new, mark) for new in delta.artifacts)),
        ),
        state,
    )


def _with_criteria(goal: Goal, more: Sequence[str]) -> Goal:
    """The goal with the criteria that it has not yet."""
    held = tuple(goal.success_criteria)
    added = [text for text in dict.fromkeys(cut(text, PLAN_BYTES) for text in more) if text not in held]
    if not added:
        return goal
    return Goal(description=goal.description, success_criteria=[*held, *added[: max(CRITERIA - len(held), 0)]])


def _with_constraints(held: tuple[Constraint, ...], more: Sequence[Constraint]) -> tuple[Constraint, ...]:
    """The constraints with those that are not there yet."""
    known = {(constraint.text, constraint.strength) for constraint in held}
    each = {(cut(constraint.text, PLAN_BYTES), constraint.strength): None for constraint in more}
    added = [Constraint(text=text, strength=strength) for text, strength in each if (text, strength) not in known]
    return (*held, *added[: max(CONSTRAINTS - len(held), 0)]) if added else held


def _limited(state: TaskState, before: TaskState | None = None) -> TaskState:
    """The task without the oldest entries of lists that are too long. Lists as long as before were looked at before."""
    changes: dict[str, Any] = {}
    omitted = state.omitted
    for name, texts in entry.TEXTS.items():
        held = getattr(state, name)
        if before is not None and len(held) == len(getattr(before, name)):
            continue
        kept = newest(held, texts, entry.is_kept)
        if len(kept) < len(held):
            changes[name] = kept
            omitted += len(held) - len(kept)
    return replace(state, omitted=omitted, **changes) if changes else state


# --- what parallel visits have added, brought together ---


def merged(states: Sequence[TaskState]) -> TaskState:
    """Bring tasks together that come from the same one. One alone, or the same ones, stay as they are.

    What was added is there once, told by what it says and where it comes from: what the first task has in its order,
    then what the second has beside it, and so on; what was before something that is in both stays before it.
    Observations are numbered anew. Of plans and domains the one holds that took the place of the other; of those that
    know nothing of each other the last. No step of the plan is behind what another task says of it. Of the scores of an
    artifact the highest holds, of the rounds the latest.
    """
    first = states[0]
    if all(state is first for state in states):
        return first
    domain = _holding(states, lambda state: _visit_of(state.domain_provenance))
    lists: dict[str, Any] = {name: _united([getattr(state, name) for state in states]) for name in entry.TEXTS}
    observations = lists["observations"]
    if observations:
        lists["observations"] = _numbered(observations, observations[0].sequence)
    together = replace(
        first,
        goal=_with_criteria(first.goal, [text for state in states[1:] for text in state.goal.success_criteria]),
        constraints=_with_constraints(first.constraints, [held for state in states[1:] for held in state.constraints]),
        domain=domain.domain,
        domain_provenance=domain.domain_provenance,
        plan=_plan_of(states),
        iteration=max(state.iteration for state in states),
        omitted=max(state.omitted for state in states),
        **lists,
    )
    return _limited(together)


def _plan_of(states: Sequence[TaskState]) -> Plan | None:
    planned = [state for state in states if state.plan is not None]
    held = _holding(planned, lambda state: _visit_of(state.plan and state.plan.provenance)).plan if planned else None
    return entry.caught_up(held, [state.plan for state in planned if state.plan is not None]) if held else None


def _visit_of(source: Provenance | None) -> int:
    return source.visit if source is not None else 0


def _holding(states: Sequence[TaskState], visit_of: Callable[[TaskState], int]) -> TaskState:
    """The task whose value holds, of values that visits made (0: it was given).

    A value took the place of another when its task knows the visit that made the other, and not the other way round.
    """
    visits = [visit_of(state) for state in states]
    if len(set(visits)) == 1:
        return states[-1]
    known = [{0, *(step.provenance.visit for step in state.steps)} for state in states]
    places = range(len(states))
    lasting = [
        place
        for place in places
        if not any(visits[place] in known[other] and visits[other] not in known[place] for other in places)
    ]
    return states[lasting[-1]] if lasting else states[-1]


def _united(lists: Sequence[tuple[Entry, ...]]) -> tuple[Entry, ...]:
    """The entries of all lists, each once: see `merged`. What all begin with is not compared."""
    begin = _common(lists)
    rest = [held[begin:] for held in lists]
    result = _keyed(rest[0])
    for held in rest[1:]:
        theirs = _keyed(held)
        before: dict[tuple[bytes, int], list[tuple[bytes, int]]] = {}
        waiting: list[tuple[bytes, int]] = []
        for name in theirs:
            if name not in result:
                waiting.append(name)
            elif waiting:
                before[name], waiting = waiting, []
        order = [*(name for known in result for name in (*before.get(known, ()), known)), *waiting]
        known = {**theirs, **result}
        result = {name: entry.better(known[name], theirs.get(name, known[name])) for name in order}
    return (*lists[0][:begin], *result.values())


def _common(lists: Sequence[tuple[object, ...]]) -> int:
    """With how many entries all lists begin that are the same objects."""
    shortest = min(len(held) for held in lists)
    differs = (place for place in range(shortest) if any(held[place] is not lists[0][place] for held in lists))
    return next(differs, shortest)


def _keyed(entries: Sequence[Entry]) -> dict[tuple[bytes, int], Entry]:
    """Entries by what they are told by, and how often that stood before in the list."""
    counts: Counter[bytes] = Counter()
    keyed = {}
    for held in entries:
        name = key(held)
        keyed[name, counts[name]] = held
        counts[name] += 1
    return keyed
