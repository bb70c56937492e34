"""The two bases of all wire types: requests refuse what they do not know, answers are plain."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
"""What a user calls a thing."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number that JSON can carry: no NaN, no infinity."""


class Request(BaseModel):
    """A body; an unknown member is refused, because a misspelt bound would silently not hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Answer(BaseModel):
    """An answer; members may be added later, clients ignore what they do not know."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())
