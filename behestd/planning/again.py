"""The plan of a daemon that can be made again: what a reload does before anything changes.

Above: `cli`. Below: `plan`, and the origin of the configuration, which is read anew. Providers that nothing changed of,
their secrets included, are taken over, so that their connections stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from behestd.config.source import Configuration, Origin, dotted, references
from behestd.plan import Plan
from behestd.planning import plan as planning
from behestd.providers.provider import Provider


def plan(configuration: Configuration, origin: Origin) -> Plan:
    """Make the plan of a daemon that reads its configuration again. Raises ConfigInvalid, Unsupported."""
    digests = secret_digests(configuration)
    return _complete(planning.plan(configuration), configuration, digests, origin)


def again(origin: Origin, before: Plan) -> Plan:
    """Read everything again, and make another plan. Raises ConfigInvalid, Unsupported."""
    configuration = origin.load()
    digests = secret_digests(configuration)
    made = planning.plan(configuration, _unchanged(before, configuration, digests))
    return replace(_complete(made, configuration, digests, origin), logs=before.logs)


def _complete(made: Plan, configuration: Configuration, digests: Mapping[str, bytes], origin: Origin) -> Plan:
    return replace(made, configuration=configuration, again=partial(again, origin), secret_digests=digests)


def secret_digests(configuration: Configuration) -> dict[str, bytes]:
    """Hash each secret that the settings name, by its key."""
    return {
        dotted(key): hashlib.sha256(configuration.vault.read(reference).reveal().encode()).digest()
        for key, reference in references(configuration.settings)
    }


def _unchanged(before: Plan, configuration: Configuration, digests: Mapping[str, bytes]) -> dict[str, Provider]:
    """The providers in force that can stay."""
    if before.configuration is None:
        return {}
    old, new = before.configuration.settings.providers, configuration.settings.providers
    return {
        name: provider
        for name, provider in before.models.providers.items()
        if old.get(name) == new.get(name) and _of_provider(name, before.secret_digests) == _of_provider(name, digests)
    }


def _of_provider(name: str, digests: Mapping[str, bytes]) -> dict[str, bytes]:
    prefix = dotted(("providers", name)) + "."
    return {key: digest for key, digest in digests.items() if key.startswith(prefix)}
