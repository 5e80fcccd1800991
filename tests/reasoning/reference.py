"""What a graph means, in plain words: an interpreter that does one node after the other and looks at everything."""

from behest.v1.graph_pb2 import FanInMode, Graph
from tests.reasoning.oracle import Done, Key, Oracle, Way, holds, ways, wishes

FIRST, BEST, NONE = FanInMode.FAN_IN_MODE_FIRST, FanInMode.FAN_IN_MODE_BEST, frozenset[Key]()


class Reference:
    """One graph; `visits` of it and its subgraphs: each with those whose tasks it began with, and its round."""

    def __init__(self, graph: Graph, oracle: Oracle, path: str = "", given: frozenset[Key] = NONE) -> None:
        self.graph, self.oracle, self.path, self.given = graph, oracle, path, given
        self.nodes, self.edges, self.backs = {node.id: node for node in graph.nodes}, *ways(graph)
        self.after = {name: {edge.target for edge in self.edges if edge.source == name} for name in self.nodes}
        self.below = below = {name: reach(name, self.after) for name in self.nodes}
        self.bodies = {one.place: {n for n in below[one.target] if one.source in below[n]} for one in self.backs}
        self.done, self.taken, self.round, self.answer = dict[str, Done](), dict[int, int](), 1, Done("")
        self.visits: list[tuple[Key, tuple[Key, ...], int]] = []
        self.is_fixed = graph.termination.HasField("fixed_iterations")
        self.rounds = graph.termination.fixed_iterations or graph.termination.max_iterations or 10

    def run(self) -> tuple[str, frozenset[Key]]:
        """How the graph ends ("answered", "completed" or a reason), and what its task went through."""
        limits, again = self.graph.termination, self.graph.loop_start
        is_early = not self.is_fixed and (limits.on_goal_achieved or not limits.HasField("on_goal_achieved"))
        self.visit(self.graph.start or self.graph.nodes[0].id, [])
        while not (self.answer.answers and is_early):
            back = next((edge for name in self.done if (edge := self.back(name))), None)
            if any(self.is_lost(name) for name in self.done):
                return "REASONING_NODE_FAILED", NONE
            if back and back.kind == "loop" and self.done[back.source].round >= self.rounds:
                return "REASONING_ITERATION_LIMIT", NONE
            if back:
                self.begin_anew(back, back.target, [self.done[back.source]], self.bodies[back.place])
            elif not self.step():
                ends = [self.done[name] for name in self.nodes if self.is_end(name)]
                has_answer = any(done.answers for done in ends)
                if not has_answer and any(self.is_lost(name, at_end=True) for name in self.done):
                    return "REASONING_NODE_FAILED", NONE
                is_well, bad = has_answer or self.is_fixed, f"REASONING_{'ITERATION_LIMIT' if again else 'NO_ANSWER'}"
                if not again or self.round >= self.rounds or (has_answer and not self.is_fixed):
                    return "completed" if is_well else bad, NONE.union(*(done.steps for done in ends if is_well))
                self.begin_anew(None, again, ends, self.below[again])
        return "answered", self.answer.steps

    def step(self) -> bool:
        """Do the first thing that can be done. Whether there was one."""
        self.done |= dict.fromkeys(late := self.late(), Done("skipped"))
        for name in [name for name in self.nodes if name not in self.done]:
            inputs = None if late else self.inputs(name)
            if inputs == []:
                self.done[name] = Done("skipped")
            elif inputs is not None:
                self.visit(name, [self.done[other] for other in inputs])
            if name in self.done:
                return True
        return bool(late)

    def late(self) -> set[str]:
        """The nodes that have not ended and that nobody waits for any more: others of races and of FIRST."""
        firsts = {edge.target for edge in self.edges if edge.mode == FIRST and self.is_taken(edge)}
        late = {edge.source for edge in self.edges if edge.mode == FIRST and edge.target in firsts - self.done.keys()}
        late |= {name for name in self.nodes if self.race(name) == "lost"}
        for _ in self.nodes:
            past = late | self.done.keys() | firsts
            late |= {name for name, after in self.after.items() if after & late - self.done.keys() and after <= past}
        return late - self.done.keys()

    def visit(self, name: str, inputs: list[Done], *, number: int = 0) -> None:
        path, node, is_late = self.path + name, self.nodes[name], name in self.late()
        key = (path, 1 + sum(visit[0][0] == path for visit in self.visits))
        self.round = max(self.round, number := number or max((done.round for done in inputs), default=1))
        self.visits.append((key, tuple(done.key for done in inputs), number))
        steps = NONE.union(*(done.steps for done in inputs)) if inputs else self.given
        said, answers = Done("skipped") if is_late else self.oracle(*key), NONE.union(*(one.answers for one in inputs))
        if node.HasField("subgraph") and not is_late:
            inner = Reference(node.subgraph, self.oracle, f"{path}#{key[1]}/", steps)
            said = Done("success" if inner.run()[0] in ("answered", "completed") else "failed")
            self.visits += inner.visits
        gives = node.operator == "answer" and said.outcome in ("success", "failure")
        attempts = 1 + sum(self.taken.get(edge.place, 0) for edge in self.backs if edge.source == name)
        answers |= {key} if gives else NONE
        self.done[name] = Done(said.outcome, said.score, key, steps | {key}, answers, attempts, number)
        self.answer = self.done[name] if gives and not self.answer.answers else self.answer

    def begin_anew(self, back: Way | None, name: str, inputs: list[Done], names: set[str]) -> None:
        kept = {edge.place for edge in self.backs if not {edge.source, edge.target} <= names or edge == back}
        self.done = {other: done for other, done in self.done.items() if other not in names}
        self.taken = {place: self.taken.get(place, 0) + (back is not None and place == back.place) for place in kept}
        self.visit(name, inputs, number=inputs[0].round + (back.kind == "loop") if back else self.round + 1)

    def inputs(self, name: str) -> list[str] | None:
        """The nodes whose tasks a node begins with. None: it has to wait. Empty: it is left out."""
        states = [(edge, self.is_taken(edge)) for edge in self.edges if edge.target == name]
        joined = [edge for edge, taken in states if taken and edge.mode]
        chosen = joined[0] if joined and joined[0].mode == FIRST else None
        if joined and joined[0].mode == BEST and all(taken is not None for _, taken in states):
            chosen = max(joined, key=lambda edge: self.done[edge.source].score)
        states = [(edge, edge is chosen if edge.mode and chosen else taken) for edge, taken in states]
        is_known = all(taken is not None for _, taken in states)
        return list(dict.fromkeys(edge.source for edge, taken in states if taken)) if is_known else None

    def is_taken(self, edge: Way) -> bool | None:
        name, race = edge.source, self.race(edge.source)
        waits = [name]  # for the ends of the loops that it leads out of, and of those that go back to such ends
        for one in waits:
            left = [loop.source for loop in self.backs if {one, edge.target} & self.bodies[loop.place] == {one}]
            waits += [other for other in left if other not in waits]
        if any(one not in self.done or (self.back(one) and one != name) for one in waits):
            return None
        if self.done[name].outcome == "skipped" or race == "lost":
            return False
        return None if race == "on" or self.back(name) else holds(edge.says, self.done[name])

    def back(self, name: str, *, is_racer: bool = False) -> Way | None:
        if (self.after[name] and self.after[name] <= self.done.keys()) or not (is_racer or self.race(name) != "lost"):
            return None
        is_over = self.is_fixed and self.done[name].round >= self.rounds
        edges = [edge for edge in self.backs if edge.source == name and (edge.kind == "retry" or not is_over)]
        return next((edge for edge in edges if wishes(edge, self.done[name], self.taken, self.is_fixed)), None)

    def race(self, name: str) -> str:
        """How a node does in the races that it is in: "lost", "on" while others may win, else empty."""
        fate = ""
        for source in {edge.source for edge in self.edges if (edge.target, edge.kind) == (name, "race")}:
            racers = [edge.target for edge in self.edges if (edge.source, edge.kind) == (source, "race")]
            ended = [one for one in racers if one in self.done and not self.back(one, is_racer=True)]
            won = next((one for one in ended if self.done[one].outcome == "success"), "")
            if fate != "lost" and source in self.done and self.done[source].outcome in ("success", "failure"):
                fate = "lost" if won not in ("", name) else "on" if not won and {*racers} - {name, *ended} else fate
        return fate

    def is_lost(self, name: str, *, at_end: bool = False) -> bool:
        """Whether a node failed and nothing is said to follow; at the end: whether all that should have is left out."""
        edges = [edge for edge in self.edges if edge.source == name]
        if self.done[name].outcome != "failed" or self.race(name) or self.back(name):
            return False
        if at_end:
            left_out = {self.done[edge.target].outcome for edge in edges if edge.mode} == {"skipped"}
            return left_out and not any(self.is_taken(edge) for edge in edges)
        return not any(edge.mode or (edge.kind == "branch" and holds(edge.says, self.done[name])) for edge in edges)

    def is_end(self, name: str) -> bool:
        taken = self.race(name) == "lost" or any(self.is_taken(edge) for edge in self.edges if edge.source == name)
        return name in self.done and self.done[name].outcome in ("success", "failure") and not taken


def reach(name: str, steps: dict[str, set[str]]) -> set[str]:
    return {name}.union(*(reach(other, steps) for other in steps[name]))
