"""Generate the contract of the pure-Python client from the proto files.

Runs in the environment of the generators (`make clients-python-lite-proto`), which has protoc, with betterproto2's
plugin from the environment of this client. What is written is whole: files without a source any more go.
"""

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COMMITTED = HERE / "behest_lite" / "contract"
PLUGIN = "protoc-gen-python_betterproto2"
HEADER = "# @generated from the proto files; make clients-python-lite-proto writes it anew.\n"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"


def main() -> int:
    """Write the generated files, or with --check compare them and return 1 when one differs."""
    parser = argparse.ArgumentParser(description="Generate the contract of the pure-Python client.")
    parser.add_argument("--plugins", type=Path, required=True, help="folder that holds betterproto2's plugin")
    parser.add_argument("--committed", type=Path, default=COMMITTED, help="folder to write, or to compare")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        if not generate(options.plugins.absolute(), fresh):
            return 1
        stale = differing(fresh, options.committed)
        if options.check:
            for name in stale:
                sys.stderr.write(f"not current: {options.committed / name} (run make clients-python-lite-proto)\n")
            return 1 if stale else 0
        if stale:
            shutil.rmtree(options.committed, ignore_errors=True)
            shutil.copytree(fresh, options.committed)
    return 0


def generate(plugins: Path, out: Path) -> bool:
    """Run protoc over every file of the contract; False when it refused one (it has said why)."""
    files = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    includes = [f"-I{ROOT / 'proto'}", f"-I{ROOT / 'third_party'}", f"-I{WELL_KNOWN}"]
    # The plugin calls the formatter that is pinned with it.
    os.environ["PATH"] = f"{plugins}{os.pathsep}{os.environ['PATH']}"
    plugin = [f"--plugin={PLUGIN}={plugins / PLUGIN}", f"--python_betterproto2_out={out}"]
    options = ["--python_betterproto2_opt=client_generation=async,server_generation=none"]
    if protoc.main(["protoc", *includes, *plugin, *options, *files]) != 0:
        return False
    for path in out.rglob("*.py"):
        # The plugin says so too, but behind a long list of sources, where few look.
        path.write_text(HEADER + path.read_text())
    return True


def differing(fresh: Path, committed: Path) -> list[str]:
    """Return the names that are new, changed or without a source any more, sorted."""
    names = {
        str(path.relative_to(place))
        for place in (fresh, committed)
        for path in place.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    _, changed, missing = filecmp.cmpfiles(fresh, committed, names, shallow=False)
    return sorted([*changed, *missing])


if __name__ == "__main__":
    sys.exit(main())
