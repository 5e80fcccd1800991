"""Generate the Python contract from the proto files.

Runs in the generator's own environment (`make proto`) and imports nothing of the project. Messages get
stubs by mypy-protobuf, whose oneofs are literals, so that `match event.WhichOneof("payload")` is checked for
completeness; protoc's own `--pyi_out` knows them as plain strings. Only `*_service.proto` files get gRPC
code. Files without a source any more are removed.
"""

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = Path(sys.executable).parent
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"


def main() -> int:
    """Write the generated files, or with --check compare them and return 1 when one differs."""
    parser = argparse.ArgumentParser(description="Generate the Python contract from the proto files.")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to read and write")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    options = parser.parse_args()
    committed = options.root / "clients/python/behest/v1"
    with tempfile.TemporaryDirectory() as scratch:
        if not generate(options.root, Path(scratch)):
            return 1
        fresh = Path(scratch) / "behest/v1"
        stale = differing(fresh, committed)
        if options.check:
            for name in stale:
                sys.stderr.write(f"not current: {committed / name} (run make proto)\n")
            return 1 if stale else 0
        replace(fresh, committed, stale)
    return 0


def generate(root: Path, out: Path) -> bool:
    """Run protoc over every file of the contract; False when it refused one (it has said why)."""
    files = sorted(str(path.relative_to(root / "proto")) for path in (root / "proto").rglob("*.proto"))
    services = [name for name in files if name.endswith("_service.proto")]
    includes = [f"-I{root / 'proto'}", f"-I{root / 'third_party'}", f"-I{WELL_KNOWN}"]
    plugins = [f"--plugin={name}={PLUGINS / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    messages = [f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    stubs = [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"]
    if not files:
        sys.stderr.write(f"no proto files under {root / 'proto'}\n")
        return False
    if protoc.main(["protoc", *includes, *plugins, *messages, *files]) != 0:
        return False
    return not services or protoc.main(["protoc", *includes, *plugins, *stubs, *services]) == 0


def differing(fresh: Path, committed: Path) -> list[str]:
    """Return the names that are new, changed or without a source any more, sorted."""
    names = {path.name for place in (fresh, committed) for path in place.glob("*_pb2*.py*")}
    _, changed, missing = filecmp.cmpfiles(fresh, committed, names, shallow=False)
    return sorted([*changed, *missing])


def replace(fresh: Path, committed: Path, names: list[str]) -> None:
    """Make the committed files what the fresh ones are, touching only what differs."""
    for name in names:
        if (fresh / name).exists():
            (committed / name).write_bytes((fresh / name).read_bytes())
        else:
            (committed / name).unlink()


if __name__ == "__main__":
    sys.exit(main())
