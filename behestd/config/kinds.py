"""The kinds of values that the configuration holds, and what all its sections have in common. Below: `secret`.

Above: the sections, in `config` and `parts`.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Len
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, Strict, WithJsonSchema

from behestd import secret
from behestd.secret import Reference

MIB = 1024 * 1024

_REFERENCE = WithJsonSchema({"type": "string", "pattern": "^(env|file|credential):"})
_TEXT = WithJsonSchema({"type": "string"})

Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Ge(0)]
Positive = Annotated[int, Strict(), Ge(1)]
Seconds = Annotated[float, Strict(), Ge(0)]
PositiveSeconds = Annotated[float, Strict(), Gt(0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
ToolGlob = Annotated[str, Len(1, 64)]
SecretRef = Annotated[Reference, PlainValidator(secret.parse), PlainSerializer(str), _REFERENCE]
PublicRef = Annotated[Reference, PlainValidator(secret.parse_public), PlainSerializer(str), _REFERENCE]
HeaderText = Annotated[Reference, PlainValidator(secret.parse_or_text), PlainSerializer(str), _TEXT]


class Section(BaseModel):
    """A section: frozen, closed, and never showing in an error what it was given."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)
