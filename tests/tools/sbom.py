"""Writes the bill of materials of behestd, CycloneDX 1.6, from what the distributions themselves say.

python -m tests.tools.sbom FILE

It holds the daemon, its SDK and all that these need in this environment, extras included, with versions, licences
and package URLs. The same environment gives the same bytes: neither time nor chance is in it.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOTS = ("behestd", "behest")


def plain(name: str) -> str:
    """The name of a distribution as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str) -> list[str]:
    """The distributions that one needs here, of its extras those that are installed."""
    found: set[str] = set()
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        extras = metadata.metadata(name).get_all("Provides-Extra") or ()
        is_wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *(extras if name in ROOTS else ()))
        )
        if is_wanted and is_installed(requirement.name):
            found.add(plain(requirement.name))
    return sorted(found)


def is_installed(name: str) -> bool:
    """Whether a distribution is there."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def collect() -> dict[str, list[str]]:
    """Everything that is needed, and by whom."""
    graph: dict[str, list[str]] = {}
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop()
        if name not in graph:
            graph[name] = needed(name)
            waiting += graph[name]
    return graph


def component(name: str) -> dict[str, Any]:
    """What is told of one distribution."""
    about = metadata.metadata(name)
    version = metadata.version(name)
    purl = f"pkg:pypi/{plain(name)}@{version}"
    told: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": about["Name"],
        "version": version,
        "purl": purl,
    }
    if licence := about.get("License-Expression"):
        told["licenses"] = [{"expression": licence}]
    elif licence := (about.get("License") or "").partition("\n")[0].strip()[:100]:
        told["licenses"] = [{"license": {"name": licence}}]
    return told


def bill() -> dict[str, Any]:
    """The whole bill."""
    graph = collect()
    components = {name: component(name) for name in sorted(graph)}
    root = components.pop("behestd")
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root | {"type": "application"}},
        "components": list(components.values()),
        "dependencies": [
            {
                "ref": (components.get(name) or root)["bom-ref"],
                "dependsOn": [components[one]["bom-ref"] for one in ones if one in components],
            }
            for name, ones in sorted(graph.items())
        ],
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(bill(), indent=2, sort_keys=True) + "\n")
