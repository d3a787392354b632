"""Schema of the choices that `/v1/credit/scar` and `/v1/credit/scar/solve` share."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator
from typing_extensions import Self

from creditd.wire.fields import MAX_MAGNITUDE, Positive, WireModel
from creditd.wire.forms import Form
from creditd.wire.patterns import MAX_PATTERN
from creditd.wire.v1 import EstimatorChoice

MAX_UNITS = 4096
"""Most units of one completion, whatever the setting."""
MAX_MASK_TEXT = 256
SEGMENTATION_NAMES = ("span", "token", "sentence", "lines", "regex", "given")
SPAN_CREDIT_NAMES = ("auto", "shapley", "owen", "prefix", "leave_one_out", "uniform", "attention")

Alpha: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""α, the part of v(P) − v(∅) that units get where they stand; 1 − α of v(P) stays on the last token."""


class _Segmentation(WireModel):
    """What every segmentation has."""

    max_units: Annotated[int, Field(ge=1, le=MAX_UNITS)] | None = 24
    """Most units: beyond it neighbours are merged, the shortest first, before anything is evaluated. Null: none are."""


class TextSegmentation(_Segmentation):
    """The text is cut behind `.,;?!` (not within a number), behind sentences, or behind lines."""

    type: Literal["span", "sentence", "lines"] = "span"


class TokenSegmentation(_Segmentation):
    """Each token is a unit, or the few that write one character. Needs `token_offsets`."""

    type: Literal["token"]


class RegexSegmentation(_Segmentation):
    """The text is cut behind each match of a pattern."""

    type: Literal["regex"]
    pattern: Annotated[str, Field(min_length=1, max_length=MAX_PATTERN)]
    """A regular expression of the package `regex`, flags inline, without recursion and approximate matching. A match
    of no character cuts nothing, and nothing is cut off that is white space alone."""


class GivenSegmentation(_Segmentation):
    """The units of each item are its `units`."""

    type: Literal["given"]


SegmentationChoice: TypeAlias = Annotated[
    TextSegmentation | TokenSegmentation | RegexSegmentation | GivenSegmentation, Field(discriminator="type")
]


class DeleteAbsent(WireModel):
    """Absent units are left out."""

    type: Literal["delete"] = "delete"


class BlankAbsent(WireModel):
    """One blank stands for each run of absent units."""

    type: Literal["blank"]


class MaskTokenAbsent(WireModel):
    """One mask token stands for each run of absent units."""

    forms = (
        Form("a text", present=("text",), absent=("id",)),
        Form("a token of the model", present=("id",), absent=("text",)),
    )

    type: Literal["mask_token"]
    text: Annotated[str, Field(min_length=1, max_length=MAX_MASK_TEXT)] | None = None
    """What stands there."""
    id: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Number of the token in the model's vocabulary, whose text stands there."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.id is None):
            raise ValueError("expected a text or an id, and not both")
        return self


AbsentChoice: TypeAlias = Annotated[DeleteAbsent | BlankAbsent | MaskTokenAbsent, Field(discriminator="type")]


class EstimatedCredit(WireModel):
    """Shapley values of the units, by all coalitions or by a sample; or the best value that the budget affords."""

    type: Literal["auto", "shapley"] = "auto"
    """`auto`: by the longest of the completions that are compared, exact Shapley values where all coalitions fit the
    budget, else Owen values over the balanced tree where those do, else Shapley values from permutations."""


class OwenCredit(WireModel):
    """Owen values: Shapley values of unions, of the unions in them, and so on down a binary tree over the units."""

    type: Literal["owen"]


class DefinedCredit(WireModel):
    """What few coalitions define: what a unit adds to those before it; what its absence costs; an even share."""

    type: Literal["prefix", "leave_one_out", "uniform"]
    """`prefix` never looks ahead; `leave_one_out` does not sum to v(P) − v(∅), and the last token gets the rest;
    `uniform` gives each token the same."""


class AttentionCredit(WireModel):
    """v(P) − v(∅) in proportion to the attention of the reward model's last layer where it reads the score (ABC)."""

    type: Literal["attention"]


SpanCreditChoice: TypeAlias = Annotated[
    EstimatedCredit | OwenCredit | DefinedCredit | AttentionCredit, Field(discriminator="type")
]
SolveCreditChoice: TypeAlias = Annotated[EstimatedCredit | OwenCredit | DefinedCredit, Field(discriminator="type")]
"""Without the attention of a model."""


class SpanEstimatorChoice(EstimatorChoice):
    """How many coalitions a completion may take, and how Shapley values are found."""

    type: Literal["auto", "exact", "stratified", "permutations"] = "auto"
    """`auto`: all 2^n where the budget allows, else permutations. Another one needs the credit `auto` or `shapley`."""
    budget: Annotated[int, Field(ge=1, le=2**31)] = 512
    """Distinct coalitions that may be evaluated per completion."""
    target_standard_error: Annotated[float, Field(gt=0, le=MAX_MAGNITUDE, allow_inf_nan=False)] | None = None
    """Stop early when every unit's standard error, times 1.3, is at most this, reward units."""


class SpanAdvantageChoice(WireModel):
    """Whether tokens get advantages as well, in the form of GRPO."""

    type: Literal["none", "pooled"] = "none"
    ddof: Annotated[int, Field(ge=0, le=1)] = 1
    epsilon: Annotated[float, Field(ge=0, le=MAX_MAGNITUDE, allow_inf_nan=False)] = 1e-4
    """Added to the standard deviation, reward units."""


class SpanExpectChoice(WireModel):
    """What the caller is sure of; anything else is an error, never a silent baseline."""

    group_size: Positive | None = None
