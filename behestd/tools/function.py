"""Function tools: code of extensions, trusted, inside the daemon.

Above it the performer, by the port `tool`, and the daemon, which loads the extensions named in the configuration. Each
extension is a module with `register(registry)`; it adds functions with `registry.tool(function)`. An async function
runs on the loop and is cancelled at its limit; a plain one runs in a thread, which cannot be stopped: it is told, its
answer is dropped, and its effect is unknown. There is no memory of calls, so `status` tells of running ones only.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import inspect
import json
import threading
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from behest.v1.message_pb2 import JsonPart, Part, TextPart
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed, Progress, Tool, ToolPolicy
from behestd.tools.catalog import Catalog
from behestd.tools.json_text import JsonRefused, read
from behestd.tools.schema import Validators
from behestd.tools.tool import (
    Answer,
    Call,
    CannotTell,
    Running,
    ShowProgress,
    Status,
    ToolFailure,
    answer,
    error_answer,
)

RESULT_LIMIT_BYTES = 16 * 1024 * 1024
THREADS = 32
"""Most plain functions that run at once; more wait for a thread within their time limit."""

_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_log = structlog.get_logger(__name__)

Function = Callable[..., Any]


class Context:
    """What a function may know of its call and tell about it: a parameter of this type gets it. Safe in threads."""

    def __init__(self, call: Call, progress: ShowProgress, loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self._progress = progress
        self._loop = loop
        self._cancelled = threading.Event()
        self._is_open = True
        self.never_began = False

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more; a plain function should look now and then, and stop."""
        return self._cancelled.is_set()

    def progress(self, text: str = "", *, current: float | None = None, total: float | None = None) -> None:
        """Show how far the work is."""
        self._loop.call_soon_threadsafe(self._show, Progress(text=text, current=current, total=total))

    def _show(self, progress: Progress) -> None:
        if self._is_open:
            self._progress(progress)

    def close(self) -> None:
        """Show nothing any more and tell the function to stop."""
        self._is_open = False
        self._cancelled.set()


class Functions:
    """The functions of the daemon: what extensions add them to, and the threads that plain ones run in."""

    def __init__(self, catalog: Catalog, threads: int = THREADS) -> None:
        self._catalog = catalog
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="function-tool")

    def tool(
        self,
        function: Function,
        *,
        name: str = "",
        description: str = "",
        input_schema: Mapping[str, Any] | None = None,
        output_schema: Mapping[str, Any] | None = None,
        policy: ToolPolicy | None = None,
    ) -> Function:
        """Add a function, async or plain, and return it unchanged.

        Name and description default to those of the function. Without `input_schema` the schema comes from the
        signature, and arguments arrive as the types that it names; with one they arrive as plain JSON values. Strings
        become text results, everything else JSON. Raises InvalidRequest, ToolNameTaken, and TypeError for a signature
        that no JSON object can fill.
        """
        signature = _Signature.of(function)
        schema = dict(input_schema) if input_schema is not None else signature.schema()
        tool = Tool(
            name=name or function.__name__,
            description=description or inspect.getdoc(function) or "",
            input_schema_json=json.dumps(schema),
            output_schema_json="" if output_schema is None else json.dumps(output_schema),
        )
        model = None if input_schema is not None else signature.model
        executor = FunctionTool(tool, function, signature.context, model, (self._catalog.validators, self._threads))
        self._catalog.register_function(tool, executor, policy)
        return function

    def close(self) -> None:
        """Let go of the threads; functions that still run are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def load(modules: Iterable[str], registry: object) -> None:
    """Import each extension and let it register. What an extension raises stops the start of the daemon.

    Raises ValueError for a module without `register`.
    """
    for name in modules:
        register = getattr(importlib.import_module(name), "register", None)
        if not callable(register):
            raise ValueError(f"extension {name} has no register(registry)")
        register(registry)


@dataclass(frozen=True, slots=True)
class _Signature:
    """A function's parameters: a model of those that arguments fill, and the name of the one that gets the context."""

    model: type[BaseModel]
    context: str

    @classmethod
    def of(cls, function: Function) -> _Signature:
        hints = typing.get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        context = ""
        for name, parameter in inspect.signature(function).parameters.items():
            if hints.get(name) is Context:
                context = name
            elif parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(f"parameter {name} of {function.__name__} cannot be given by name")
            else:
                default = ... if parameter.default is parameter.empty else parameter.default
                # The alias keeps parameters such as `json` from hiding methods of the model.
                fields[f"argument_{name}"] = (hints.get(name, Any), Field(default, alias=name))
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
        return cls(create_model(function.__name__, __config__=config, **fields), context)

    def schema(self) -> dict[str, Any]:
        schema = self.model.model_json_schema()
        schema.pop("title", None)
        for part in schema.get("properties", {}).values():
            part.pop("title", None)
        return schema


class FunctionTool:
    """One function. See `tool.Executor` for the promises."""

    def __init__(
        self,
        tool: Tool,
        function: Function,
        context: str,
        model: type[BaseModel] | None,
        shared: tuple[Validators, ThreadPoolExecutor],
    ) -> None:
        self._tool = tool
        self._function = function
        self._context = context
        self._model = model
        self._validators, self._threads = shared
        self._running: dict[str, tuple[asyncio.Timeout, Context]] = {}

    async def call(self, call: Call, progress: ShowProgress) -> Answer:
        """Run the function once. Raises ToolFailure."""
        arguments = self._arguments(call.arguments_json)
        context = Context(call, progress, asyncio.get_running_loop())
        if self._context:
            arguments[self._context] = context
        scope = asyncio.timeout(call.timeouts.start_to_close_seconds)
        self._running[call.key] = (scope, context)
        try:
            async with scope:
                value = await self._run(arguments, context)
        except TimeoutError as exc:
            raise _over(call, context) from exc
        finally:
            self._running.pop(call.key, None)
            context.close()
        return value if isinstance(value, Answer) else self._answer(value)

    async def cancel(self, key: str, epoch: int) -> bool:
        """Stop the function where it waits; one in a thread is told, and goes on."""
        if key not in self._running:
            return False
        scope, context = self._running[key]
        context.close()
        if not scope.expired():
            scope.reschedule(asyncio.get_running_loop().time())
        return True

    async def status(self, key: str, epoch: int, wait_seconds: float = 0.0, attempt: int = 0) -> Status:
        """Nobody remembers calls of functions that have ended."""
        return Running() if key in self._running else CannotTell()

    def _arguments(self, arguments_json: str) -> dict[str, Any]:
        problem = self._validators.arguments(self._tool, arguments_json)
        if problem:
            raise _malformed(problem)
        values: dict[str, Any] = read(arguments_json or "{}").value
        if self._model is None:
            return values
        try:
            filled = self._model.model_validate(values)
        except ValidationError as exc:
            found = exc.errors(include_url=False, include_context=False, include_input=False)
            errors = [{"path": "".join(f"/{word}" for word in e["loc"]), "message": e["msg"]} for e in found[:20]]
            document = {"error": "TOOL_ARGUMENTS_INVALID", "tool": self._tool.name, "errors": errors}
            raise _malformed(json.dumps(document, ensure_ascii=False)) from exc
        return {name.removeprefix("argument_"): getattr(filled, name) for name in type(filled).model_fields}

    async def _run(self, arguments: dict[str, Any], context: Context) -> object:
        """Run the function; what it raises becomes an answer that says so."""
        task = asyncio.current_task()
        try:
            if inspect.iscoroutinefunction(self._function):
                waiting: Awaitable[object] = self._function(**arguments)
                return await waiting
            return await self._run_in_thread(arguments, context)
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            # The function cancelled itself; nobody asked for that, so it is its own failure.
            return error_answer("the function was cancelled from within")
        except ToolFailure:
            raise
        except Exception as exc:  # noqa: BLE001  the border to code of others; the performer sees only answers
            # Not the text, which may hold what the model wrote.
            _log.warning("function tool raised", tool=self._tool.name, error=type(exc).__name__)
            return error_answer(f"{type(exc).__name__}: {exc}"[:2_000])

    async def _run_in_thread(self, arguments: dict[str, Any], context: Context) -> object:
        variables = contextvars.copy_context()
        work = self._threads.submit(lambda: variables.run(self._function, **arguments))
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            # True is proof: it was still waiting for a thread, and will never get one.
            context.never_began = work.cancel()
            raise

    def _answer(self, value: object) -> Answer:
        """Make an answer of what the function returned. Raises ToolFailure, executed, for what cannot be one."""
        if isinstance(value, str):
            text = value.encode(errors="replace").decode()
            self._check_size(len(text.encode()))
            return answer([Part(text=TextPart(text=text))])
        try:
            document = _ANY.dump_json(value).decode()
            self._check_size(len(document))
            read(document, max_bytes=RESULT_LIMIT_BYTES, max_depth=128)
        except (JsonRefused, ValueError) as exc:
            raise _unusable("TOOL_RESULT_INVALID", f"the function returned what is no JSON: {exc}"[:500]) from exc
        problem = self._validators.structured(self._tool, document)
        if problem:
            raise _unusable("TOOL_RESULT_INVALID", problem)
        return answer([Part(json=JsonPart(json=document))])

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > RESULT_LIMIT_BYTES:
            limit = f"a result of {size_bytes} bytes exceeds the limit of {RESULT_LIMIT_BYTES} bytes"
            raise _unusable("TOOL_RESULT_TOO_LARGE", limit)


def _over(call: Call, context: Context) -> ToolFailure:
    if context.is_cancelled:
        reason, message = "TOOL_CANCELLED", "the call was cancelled"
    else:
        reason, message = "TOOL_TIMEOUT", f"no result within {call.timeouts.start_to_close_seconds:g} s"
    if context.never_began:
        text = f"{message}; no thread had become free for it"
        return ToolFailure(FailureClass.FAILURE_CLASS_NOT_SENT, Executed.EXECUTED_NO, reason, text)
    return ToolFailure(FailureClass.FAILURE_CLASS_AMBIGUOUS, Executed.EXECUTED_UNKNOWN, reason, message)


def _malformed(document: str) -> ToolFailure:
    return ToolFailure(FailureClass.FAILURE_CLASS_MALFORMED, Executed.EXECUTED_NO, "TOOL_ARGUMENTS_INVALID", document)


def _unusable(reason: str, message: str) -> ToolFailure:
    failure_class = (
        FailureClass.FAILURE_CLASS_LIMIT if reason == "TOOL_RESULT_TOO_LARGE" else FailureClass.FAILURE_CLASS_MALFORMED
    )
    return ToolFailure(failure_class, Executed.EXECUTED_YES, reason, message)
