"""Schema of `POST /v1/models/{id}/weights`: where the weights of a policy come from, and what came of it.

Weights come from a directory that the service sees, named in a document, or in the body itself: one safetensors file
per request, with `WeightsShard` in the query.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from typing_extensions import Self

from creditd.wire.fields import WireModel
from creditd.wire.forms import Form, Schema
from creditd.wire.oar import WeightVersion
from creditd.wire.v1 import Service

SHARD_MEDIA_TYPE = "application/vnd.creditd.safetensors"
"""Of a body that is one safetensors file."""
MAX_SHARDS = 10_000
"""Shards of one version."""
MAX_PATH = 4096

Checksum: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""BLAKE2b of 16 bytes, in hexadecimal digits."""

_NO_ADAPTER: dict[str, Schema] = {"adapter": {"const": False}, "merged": {"const": False}}

PATH_EXAMPLE: JsonDict = {"type": "path", "path": "run7/step_40", "weight_version": "run7:40"}
ANNOUNCE_EXAMPLE: JsonDict = {"type": "announce", "weight_version": "run7:41"}


class WeightsRequest(WireModel):
    """Weights that the service finds by itself, or that will come."""

    model_config = ConfigDict(json_schema_extra={"examples": [PATH_EXAMPLE, ANNOUNCE_EXAMPLE]})
    forms = (
        Form("weights", present=("path",), of={"type": {"const": "path"}, **_NO_ADAPTER}),
        Form("adapter", present=("path", "adapter"), of={"type": {"const": "path"}, "adapter": {"const": True}}),
        Form("announcement", absent=("path", "checksum"), of={"type": {"const": "announce"}, **_NO_ADAPTER}),
    )

    type: Literal["path", "announce"]
    """`path`: take these weights now. `announce`: weights of this version will come; requests may wait for them."""
    weight_version: WeightVersion
    """What these weights are called from now on: a name that no other bytes have had, such as `RUN:STEP`."""
    path: Annotated[str, Field(min_length=1, max_length=MAX_PATH)] | None = None
    """A safetensors file, or a directory as `save_pretrained` writes it, below the service's `weights_root`."""
    adapter: bool = False
    """Whether it is an adapter by PEFT, beside the weights that the policy was loaded with."""
    merged: bool = False
    """Whether an adapter is added to the weights, or computed beside them. The sensitivities are the same."""
    checksum: Checksum | None = None
    """What `creditd.engines.fingerprints.digest_of` says of the files. Null: nothing is compared."""

    @model_validator(mode="after")
    def _fields_of_its_type(self) -> Self:
        if self.type == "path" and self.path is None:
            raise ValueError("the type path needs a path, below the service's weights_root")
        if self.type == "announce" and (self.path is not None or self.checksum is not None or self.adapter):
            raise ValueError("the type announce names a version alone: expected no path, checksum and adapter")
        if self.merged and not self.adapter:
            raise ValueError("only an adapter is merged: expected adapter to be true")
        return self


class WeightsShard(BaseModel):
    """One shard of weights, as the query of a request whose body is the shard."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    weight_version: WeightVersion
    """What the weights of all its shards together are called from now on."""
    shard: Annotated[int, Field(ge=0, lt=MAX_SHARDS)]
    """Which of them this is, from 0."""
    shards: Annotated[int, Field(ge=1, le=MAX_SHARDS)]
    """How many there are. They may come in any order, and one may come again."""
    checksum: Checksum
    """BLAKE2b of 16 bytes of the body, in hexadecimal digits."""
    adapter: bool = False
    """Whether they are an adapter by PEFT, whose `adapter_config` is in the metadata of shard 0."""
    merged: bool = False
    """Whether an adapter is added to the weights, or computed beside them. The sensitivities are the same."""

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.shard >= self.shards:
            raise ValueError("shards count from 0: expected shard to be less than shards")
        if self.merged and not self.adapter:
            raise ValueError("only an adapter is merged: expected adapter to be true")
        return self


class WeightsSeconds(WireModel):
    """What took how long, seconds."""

    receive: float
    """Until the body of this request was here."""
    verify: float
    """Until the weights were found to fit; the policy answers meanwhile."""
    swap: float
    """While they were taken; the policy answers nothing meanwhile."""


class WeightsResponse(WireModel):
    """What became of weights."""

    request_id: str
    service: Service
    model: str
    weight_version: str
    """The version that answers are of now."""
    status: Literal["announced", "staged", "live"]
    """`live`: the weights of the request are what answers are of, or were. `staged`: shards are missing."""
    missing_shards: list[int]
    """Shards that have not come, the first 1000; none once the weights are live."""
    n_bytes: int
    """Of the tensors that were taken; of the shards that are here, while some are missing."""
    n_tensors: int
    """That were taken; 0 while some are missing."""
    seconds: WeightsSeconds
    cast_from: str | None
    """The type of numbers that were cast to the policy's own; null if none was."""
