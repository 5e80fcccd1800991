"""Prints a run as it happens, and listens to Ctrl-C meanwhile.

Above: the commands that follow a run. Below: `behest.runs`, `show`, and `live` for graphs in a terminal. The answer
goes to stdout, everything else to stderr; with JSON, each event, delta and discarded attempt is a line on stdout.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
from typing import TYPE_CHECKING

import click

from behest.channel import default_address
from behest.cli.command import Exit, reported
from behest.cli.live import TICK_SECONDS, Live, is_terminal
from behest.cli.progress import NODE_EVENTS, NodeNotes
from behest.cli.show import as_json, plain
from behest.errors import BehestError
from behest.updates import Discarded, Speech
from behest.v1 import delta_pb2, event_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from behest.cli.show import Output
    from behest.client import Client
    from behest.runs import RunHandle
    from behest.updates import Update
    from behest.v1 import message_pb2, run_pb2

NOTE_CHARACTERS = 200


class Printer:
    """Prints updates, and knows whether a line is open."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._speech = Speech()
        self._is_line_open = False
        self._tools: dict[str, str] = {}
        self._nodes = NodeNotes()
        self._live: Live | None = None
        # The last event printed: where to go on.
        self.sequence = 0

    def draw(self, reasoning: run_pb2.Reasoning) -> None:
        """Draw the graph of the run in place from now on, if it has one and the output is a terminal."""
        if reasoning.HasField("graph") and is_terminal() and not self._out.is_json:
            self._live = Live(reasoning)

    def tick(self) -> None:
        """Let what is drawn be as it is now."""
        if self._live is not None:
            self._live.tick()

    def show(self, update: Update) -> None:
        """Print one update."""
        if isinstance(update, event_pb2.Event):
            self.sequence = update.sequence
        if self._out.is_json:
            self._out.line(enveloped(update))
            return
        is_cut_off = isinstance(update, Discarded) and self._speech.tells(update.step)
        self._say(update, self._speech.take(update))
        match update:
            case Discarded() if is_cut_off:
                self.note("! the answer was cut off and begins again")
                if self._live is not None:
                    self._live.begin_answer_again()
            case delta_pb2.Delta():
                if update.WhichOneof("kind") == "tool_progress":
                    self.note(f"  {update.tool_progress.text}")
            case event_pb2.Event():
                self.close_line(event=update)
                if note := self._note_of(update):
                    self.note(note)
            case _:
                pass

    def _say(self, update: Update, text: str) -> None:
        """Print what an update adds to the answer."""
        if self._live is not None:
            self._live.take(update, text)
        elif text:
            click.echo(text, nl=False)
            self._is_line_open = not text.endswith("\n")

    def note(self, text: str) -> None:
        """Print a line beside the answer."""
        self.close_line()
        if self._live is not None:
            self._live.clear()
        text = " ".join(text.split())
        self._out.note(text if len(text) <= NOTE_CHARACTERS else text[: NOTE_CHARACTERS - 1] + "…")

    def close_line(self, event: event_pb2.Event | None = None) -> None:
        """End the line that is open, at a note or when the answer is whole."""
        if self._is_line_open and (event is None or event.HasField("model_completed")):
            click.echo()
            self._is_line_open = False

    def close(self) -> None:
        """End what is open or drawn."""
        self.close_line()
        if self._live is not None:
            self._live.close()
            self._live = None

    def _note_of(self, event: event_pb2.Event) -> str:
        kind = event.WhichOneof("payload")
        if kind == "model_completed":
            calls = [part.tool_call for part in event.model_completed.message.parts if part.HasField("tool_call")]
            self._tools |= {call.id: call.name for call in calls}
        if kind == "model_failed":
            return f"! {event.model_failed.endpoint} failed: {event.model_failed.reason}: {event.model_failed.message}"
        if kind == "run_waiting":
            reason = plain(event.run_waiting.DESCRIPTOR.fields_by_name["reason"], event.run_waiting.reason)
            return f"… waiting: {reason.replace('_', ' ')}"
        if kind == "run_created":
            return f"run {event.run_id} session {event.session_id}"
        if kind in NODE_EVENTS:
            return self._nodes.note_of(event) if self._live is None else ""
        return self._note_of_tool(event) or self._note_of_child(event) or self._note_of_approval(event)

    def _note_of_tool(self, event: event_pb2.Event) -> str:
        match event.WhichOneof("payload"):
            case "tool_started":
                self._tools[event.tool_started.call_id] = event.tool_started.name
                return f"→ {event.tool_started.name} {event.tool_started.arguments_json}"
            case "tool_completed":
                done = event.tool_completed
                mark = " failed" if done.is_error else ""
                return f"← {self._name(done.call_id)}{mark}: {text_of(done.result)}"
            case "tool_failed":
                return f"← {self._name(event.tool_failed.call_id)} failed: {event.tool_failed.message}"
            case "tool_denied":
                return f"← {self._name(event.tool_denied.call_id)} denied: {event.tool_denied.message}"
            case "tool_outcome_unknown":
                call_id = event.tool_outcome_unknown.call_id
                return f"? nobody knows whether {call_id} took effect: behest tools resolve"
            case _:
                return ""

    def _note_of_child(self, event: event_pb2.Event) -> str:
        if event.HasField("child_run_started"):
            child = event.child_run_started
            return f"⇒ {self._name(child.call_id)} is run {child.child_run_id}: behest watch {child.child_run_id}"
        if event.HasField("child_run_ended"):
            over = event.child_run_ended
            state = plain(over.DESCRIPTOR.fields_by_name["state"], over.state) if over.state else "not created"
            return f"⇐ run {over.child_run_id} {state}"
        return ""

    def _note_of_approval(self, event: event_pb2.Event) -> str:
        if event.HasField("approval_requested"):
            call_id = event.approval_requested.call_id
            return f"? {self._name(call_id)} waits for an approval: behest approvals show {call_id}"
        if event.HasField("approval_decided"):
            decided = event.approval_decided
            word = plain(decided.DESCRIPTOR.fields_by_name["decision"], decided.decision)
            by = f" by {decided.by}" if decided.by else ""
            return f"! {self._name(decided.call_id)} {word}{by}" + (f": {decided.reason}" if decided.reason else "")
        return ""

    def _name(self, call_id: str) -> str:
        return self._tools.get(call_id, call_id)


def text_of(result: message_pb2.ToolResult) -> str:
    """Return what a tool said, as far as it is text."""
    return " ".join(part.json.json or part.text.text or f"({part.WhichOneof('kind')})" for part in result.parts)


def enveloped(update: Update) -> dict[str, object]:
    """Return an update as a JSON line that says what it is."""
    match update:
        case Discarded():
            return {"discarded": dataclasses.asdict(update)}
        case delta_pb2.Delta():
            return {"delta": as_json(update)}
        case _:
            return {"event": as_json(update)}


async def followed(
    client: Client, run: RunHandle, out: Output, *, cancels: bool, reasoning: run_pb2.Reasoning | None = None
) -> Exit:
    """Print a run to its end and return its exit code. Ctrl-C cancels the run where that is wanted, then leaves it.

    How far its graph was where it is followed from may be given, so that it can be drawn.
    """
    printer = Printer(out)
    if reasoning is not None:
        printer.draw(reasoning)
    async with asyncio.TaskGroup() as group:
        printing = group.create_task(printed(client, run, printer, out))
        drawing = group.create_task(drawn(printer))
        cancelling: list[asyncio.Task[None]] = []

        def interrupted() -> None:
            if cancels and not cancelling:
                printer.note("cancelling; Ctrl-C again leaves the run to itself")
                cancelling.append(group.create_task(cancelled(run, out)))
                return
            for task in (printing, *cancelling):
                task.cancel()

        with interrupts(interrupted):
            await asyncio.wait({printing})
        drawing.cancel()
    if not printing.cancelled():
        return printing.result()
    printer.close()
    where = "" if client.address == default_address() else f" --address {client.address}"
    hint = f"behest watch {run.run_id} --after {printer.sequence}{where}"
    click.echo(f"left to itself; follow it with: {hint}" if run.run_id else "left; the run is not known", err=True)
    return Exit.LEFT


async def printed(client: Client, run: RunHandle, printer: Printer, out: Output) -> Exit:
    """Print a run to its end; what went wrong is printed too and told by the exit code."""
    try:
        async with contextlib.aclosing(run.updates()) as updates:
            async for update in updates:
                if isinstance(update, event_pb2.Event) and update.run_created.HasField("task") and is_terminal():
                    record = await client.runs.get(update.run_id, at_sequence=update.sequence)
                    printer.draw(record.reasoning)
                printer.show(update)
        printer.close()
        await run.result()
    except BehestError as error:
        printer.close()
        return reported(error, client, out)
    return Exit.DONE


async def drawn(printer: Printer) -> None:
    """Let what is drawn be as it is now, a few times a second."""
    while True:
        await asyncio.sleep(TICK_SECONDS)
        printer.tick()


async def cancelled(run: RunHandle, out: Output) -> None:
    """Cancel a run; a failure to do so is printed."""
    try:
        await run.cancel(reason="interrupted at the command line")
    except BehestError as error:
        out.error(error)


@contextlib.contextmanager
def interrupts(action: Callable[[], None]) -> Iterator[None]:
    """Call the action at each Ctrl-C instead of ending the process."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, action)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
