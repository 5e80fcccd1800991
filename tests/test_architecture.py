"""The shape of the house, read from the source with `ast`: arrows between rooms, purity, tasks, sizes, locks.

Each rule is a function from a repository root to the places that break it, so that `test_checks` can show
each one failing. What cannot be known from the source alone is guessed, and the guess is named in the rule.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ADAPTERS = frozenset({"log", "providers", "tools", "context", "knowledge", "blobs", "bus"})
# Single modules at the top of behestd, and what carries calls to other processes: every room but the pure ones may
# import them.
LEAVES = frozenset({"clock", "errors", "failpoint", "telemetry", "values", "wire"})
PURE = frozenset({"core", "reasoning"})
BELOW_SERVICE = PURE | ADAPTERS | LEAVES | {"runtime"}
# Room → the rooms it may import besides itself. A name that is not here (cli, config, daemon, lifecycle …) is
# the top and may import all.
ARROWS: dict[str, frozenset[str]] = {
    "core": frozenset({"errors", "values"}),
    "reasoning": frozenset({"core", "errors", "values"}),
    **dict.fromkeys(LEAVES, LEAVES | {"core"}),
    **dict.fromkeys(ADAPTERS, LEAVES | {"core"}),
    "runtime": PURE | ADAPTERS | LEAVES,
    "service": BELOW_SERVICE,
}
# What a pure room may import from elsewhere: allowed, not denied, so that what nobody thought of is refused.
PURE_IMPORTS = re.compile(
    r"(__future__|abc|base64|binascii|bisect|collections|copy|dataclasses|decimal|difflib|enum|fnmatch"
    r"|fractions|functools|hashlib|heapq|itertools|json|math|operator|re|string|struct|textwrap|types|typing"
    r"|unicodedata|google\.protobuf|google\.rpc)(\.|$)|behest\.v1\.\w+_pb2(\.|$)"
)
# The clock hides in this method of Timestamp, which a pure room may import.
IMPURE_CALLS = frozenset({"GetCurrentTime"})
MAY_IMPORT_GRPC = re.compile(r"service/.*|\w+/remote\w*\.py|tools/attached\w*\.py|daemon\.py")
MAY_MAKE_TASKS = re.compile(r"runtime/.*|bus/.*|tools/attached\w*(\.py|/.*)|daemon\.py")
STRAY_TASKS = frozenset({"create_task", "ensure_future", "gather", "shield"})
MUTATORS = frozenset(
    {
        "CopyFrom",
        "MergeFrom",
        "MergeFromString",
        "ParseFromString",
        "Clear",
        "ClearField",
        "SetInParent",
        "Pack",
    }
    | {
        "add",
        "append",
        "clear",
        "extend",
        "insert",
        "pop",
        "remove",
        "reverse",
        "sort",
        "update",
        "setdefault",
    }
)
BUILDERS = frozenset({"__new__", "bytearray", "deepcopy", "defaultdict", "deque", "dict", "list", "set"})
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_PROTO_LINES = 400, 60, 7, 300
PIN = re.compile(r"[A-Za-z0-9][\w.-]*==[\w.!+]+( ; [\w .<>=!'\"()]+)?")

type_of_function = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(place: Path) -> Iterator[tuple[Path, str, ast.Module]]:
    """Yield path, path relative to the place, and tree of each hand-written module under it."""
    for path in sorted(place.rglob("*.py")):
        if "_pb2" not in path.name and "@generated" not in path.read_text()[:400]:
            yield path, path.relative_to(place).as_posix(), ast.parse(path.read_text(), str(path))


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and full dotted name of everything imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def room(relative: str) -> str:
    """Return the room of a file: its first folder, or its own name at the top."""
    return relative.split("/")[0].removesuffix(".py")


def broken_arrows(root: Path) -> list[str]:
    """No room imports a room it does not stand on, and of the client nothing but the contract."""
    found = []
    for _, relative, tree in modules(root / "behestd"):
        here = room(relative)
        for line, name in imports(tree):
            parts = name.split(".")
            there = parts[1] if parts[0] == "behestd" and len(parts) > 1 else here
            allowed = ARROWS.get(here)
            if allowed is not None and there != here and there not in allowed and there != "__version__":
                found.append(f"behestd/{relative}:{line}: {here} imports {there}")
            if parts[0] == "behest" and parts[1:2] != ["v1"]:
                found.append(f"behestd/{relative}:{line}: the daemon imports {name}")
    return found


def impure_modules(root: Path) -> list[str]:
    """The pure rooms import nothing that can read a clock, draw a number, wait or touch the world."""
    found = []
    for _, relative, tree in modules(root / "behestd"):
        if room(relative) not in PURE:
            continue
        for line, name in imports(tree):
            if not name.startswith("behestd.") and not PURE_IMPORTS.match(name):
                found.append(f"behestd/{relative}:{line}: {room(relative)} imports {name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in IMPURE_CALLS:
                found.append(f"behestd/{relative}:{node.lineno}: {room(relative)} uses {node.attr}")
            if isinstance(node, ast.AsyncFunctionDef | ast.Await):
                found.append(f"behestd/{relative}:{node.lineno}: {room(relative)} is asynchronous")
    return found


def stray_grpc(root: Path) -> list[str]:
    """The transport is named only at the edges."""
    return [
        f"behestd/{relative}:{line}: imports {name}"
        for _, relative, tree in modules(root / "behestd")
        if not MAY_IMPORT_GRPC.fullmatch(relative)
        for line, name in imports(tree)
        if re.match(r"grpc(_\w+)?(\.|$)", name) or "_pb2_grpc" in name
    ]


def stray_tasks(root: Path) -> list[str]:
    """Each task has a parent, and parents live in few rooms. What is named like a loop counts as asyncio."""
    found = []
    for _, relative, tree in modules(root / "behestd"):
        at_home = MAY_MAKE_TASKS.fullmatch(relative) is not None
        imported = [(line, name) for line, name in imports(tree) if name.startswith("asyncio.")]
        for line, name in imported:
            if name.split(".")[-1] in STRAY_TASKS or (name.endswith(".TaskGroup") and not at_home):
                found.append(f"behestd/{relative}:{line}: {name}")
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            receiver = ast.unparse(node.value)
            orphan = node.attr in STRAY_TASKS and (receiver == "asyncio" or "loop" in receiver.lower())
            if orphan or (not at_home and node.attr in {"TaskGroup", "create_task"}):
                found.append(f"behestd/{relative}:{node.lineno}: {receiver}.{node.attr}")
    return found


def written_values(root: Path) -> list[str]:
    """Core changes only what the same function built, by a capitalised call or a literal, or an object of its own."""
    found = []
    for _, relative, tree in modules(root / "behestd/core") if (root / "behestd/core").exists() else ():
        for function in (node for node in ast.walk(tree) if isinstance(node, type_of_function)):
            built = {"self", *locals_built_in(function)}
            for node, owner in writes_in(function):
                if owner not in built:
                    found.append(f"behestd/core/{relative}:{node.lineno}: writes to {ast.unparse(node)}")
    return found


def locals_built_in(function: Function) -> Iterator[str]:
    """Yield the names that the function assigns from a constructor call, a literal or a comprehension."""
    literals = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        made = isinstance(node.value, literals)
        if isinstance(node.value, ast.Call):
            name = ast.unparse(node.value.func).split(".")[-1]
            made = name[:1].isupper() or name in BUILDERS
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if made and isinstance(target, ast.Name))


def writes_in(function: Function) -> Iterator[tuple[ast.expr, str]]:
    """Yield each attribute or item written to, and each mutated receiver, with the name it hangs on."""
    for node in ast.walk(function):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            targets = [node.func] if node.func.attr in MUTATORS else []
        for target in targets:
            for part in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
                if isinstance(part, ast.Attribute | ast.Subscript):
                    yield part, owner_of(part)


def owner_of(node: ast.expr) -> str:
    """Return the name at the foot of a chain of attributes and items, or the text of what stands there."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ast.unparse(node)


def oversized_code(root: Path) -> list[str]:
    """Files, functions and signatures stay small enough to be read at once."""
    found = []
    for place in (root / "behestd", root / "clients"):
        for path, _, tree in modules(place):
            name = path.relative_to(root).as_posix()
            lines = len(path.read_text().splitlines())
            if lines > MAX_FILE_LINES:
                found.append(f"{name}: {lines} lines")
            for function in (node for node in ast.walk(tree) if isinstance(node, type_of_function)):
                length = (function.end_lineno or function.lineno) - function.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{name}:{function.lineno}: {function.name} has {length} lines")
                if (count := parameter_count(function)) > MAX_PARAMETERS:
                    found.append(f"{name}:{function.lineno}: {function.name} has {count} parameters")
    return found


def parameter_count(function: Function) -> int:
    """Count parameters of all kinds, a leading self or cls apart."""
    ordered = [*function.args.posonlyargs, *function.args.args]
    bound = 1 if ordered and ordered[0].arg in {"self", "cls"} else 0
    starred = [argument for argument in (function.args.vararg, function.args.kwarg) if argument is not None]
    return len(ordered) - bound + len(function.args.kwonlyargs) + len(starred)


def oversized_protos(root: Path) -> list[str]:
    """A proto file of the contract holds one noun."""
    counts = {path: len(path.read_text().splitlines()) for path in sorted((root / "proto").rglob("*.proto"))}
    return [f"{path.relative_to(root)}: {n} lines" for path, n in counts.items() if n > MAX_PROTO_LINES]


def unpinned_locks(root: Path) -> list[str]:
    """A lock file holds exact pins and nothing else: no address, no option, no secret."""
    return [
        f"{path.name}:{number}: {line}"
        for path in sorted(root.glob("requirements*.lock"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if line and not line.startswith("# ") and not PIN.fullmatch(line)
    ]


def eager_packages(root: Path) -> list[str]:
    """Importing the contract or the client package loads nothing else, or core would load grpc."""
    places = ("clients/python/behest/__init__.py", "clients/python/behest/v1/__init__.py")
    return [
        f"{name}:{line}: imports {imported}"
        for name in places
        for line, imported in imports(ast.parse((root / name).read_text()))
    ]


RULES: tuple[Callable[[Path], list[str]], ...] = (
    broken_arrows,
    impure_modules,
    stray_grpc,
    stray_tasks,
    written_values,
    oversized_code,
    oversized_protos,
    unpinned_locks,
    eager_packages,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_shape(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == [], rule.__doc__


def test_the_lock_files_exist_and_pin_something() -> None:
    assert all("==" in (ROOT / name).read_text() for name in ("requirements.lock", "requirements-proto.lock"))
