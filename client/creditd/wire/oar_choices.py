"""Schema of the choices of `/v1/credit/oar`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from creditd.wire.fields import Count, WireModel

MAX_TAG = 64
MAX_NOISE_SAMPLES = 1024
SENSITIVITY_NAMES = ("perturbation", "gradient", "given")
PROBE_NAMES = ("last", "answer_mean", "answer_joint")
PARSER_NAMES = ("given", "tags", "hashes", "boxed", "last_line")

TagName: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_TAG, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
"""A name as tags have it, without brackets."""
PolicyTokenId: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]


class PerturbationSensitivity(WireModel):
    """OAR-P: how far the policy's answer moves when one token is replaced; one forward pass per token."""

    type: Literal["perturbation"]
    token_id: PolicyTokenId | None = None
    """What a token is replaced by. Null: the padding token, which has to be another one than the end of a text."""


class GradientSensitivity(WireModel):
    """OAR-G: gradient times embedding under a little noise; per draw one forward and one backward pass."""

    type: Literal["gradient"] = "gradient"
    noise_std: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1e-3
    """Standard deviation of the noise in each coordinate of an embedding."""
    noise_samples: Annotated[int, Field(ge=1, le=MAX_NOISE_SAMPLES)] = 1
    """Draws, of which the mean is taken. Relative error under the probes of probabilities about 0.76/√draws."""
    seed: Count = 0


class GivenSensitivity(WireModel):
    """The sensitivities of each item are its `sensitivities`: no model is asked."""

    type: Literal["given"]


SensitivityChoice: TypeAlias = Annotated[
    PerturbationSensitivity | GradientSensitivity | GivenSensitivity, Field(discriminator="type")
]


class ProbeChoice(WireModel):
    """What of the policy's answer is watched; of no use where sensitivities are given."""

    type: Literal["last", "answer_mean", "answer_joint"] = "answer_mean"
    """`last`: the probabilities of the first answer token; `answer_mean`: those of the mean logits of the answer's
    tokens; `answer_joint`: the mean log-probability of the answer's tokens."""


class ReshapeChoice(WireModel):
    """How sensitivities become weights: less below a quantile of each completion, more above it."""

    quantile: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.25
    beta: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 1.0
    """The most sensitive token has the weight 1 + beta, before the mass is preserved."""
    floor: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1
    """Smallest weight, before the mass is preserved."""
    preserve_mass: bool = True
    """Scale the weights of a completion so that their mean is 1."""


class GivenParser(WireModel):
    """Reasoning and answer of each item are its `reasoning` and `answer`."""

    type: Literal["given"] = "given"


class TagsParser(WireModel):
    """The answer is within its last tag; the reasoning within its own, or everything before the answer's tag."""

    type: Literal["tags"]
    reasoning_tag: TagName = "think"
    answer_tag: TagName = "answer"


class TextParser(WireModel):
    """The answer is where texts of mathematics have it; the reasoning is everything before."""

    type: Literal["hashes", "boxed", "last_line"]
    r"""`hashes`: the rest of the line behind the last `####` that has something behind it on its line; `boxed`: within
    the last `\boxed{…}`; `last_line`: the last line that is not blank."""


ParserChoice: TypeAlias = Annotated[GivenParser | TagsParser | TextParser, Field(discriminator="type")]
