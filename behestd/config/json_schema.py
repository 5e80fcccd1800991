"""The JSON Schema of the configuration file, for editors and for who writes files by program: docs/config.schema.json.

Above: `cli`. Below: the model, and the texts that `document` reads from its source. It says what one value may be; what
two of them must not be together, and whether a secret is there, `behestd check-config` says.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from behestd.config import document
from behestd.config.settings import Settings

TITLE = "Configuration of behestd"


def written() -> str:
    """Write docs/config.schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """Make the schema of a whole file."""
    made = Settings.model_json_schema(mode="validation")
    texts = document.read_texts()
    definitions: dict[str, Any] = made.get("$defs", {})
    for model in document.models():
        if (found := definitions.get(model.__name__)) is not None:
            _explain(found, model, texts)
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **made,
        "title": TITLE,
        "description": document.text_of(texts, Settings, ""),
    }


def _explain(definition: dict[str, Any], model: type[BaseModel], texts: document.Texts) -> None:
    """Write into a definition what its texts say."""
    definition["description"] = document.text_of(texts, model, "")
    definition.pop("title", None)
    for name, found in definition.get("properties", {}).items():
        found.pop("title", None)
        text = document.text_of(texts, model, name)
        if text:
            found["description"] = text
