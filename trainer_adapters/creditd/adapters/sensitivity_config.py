"""How a trainer has its advantages reshaped by the sensitivity of the answer, and what happens when that fails.

What can be checked without asking is refused where it is written down, in the words of the argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from pydantic import ValidationError

from creditd.adapters.credit_config import Choice
from creditd.client.bodies import choice, type_of
from creditd.client.recording import DEFAULT_KEEP
from creditd.wire.oar import OarRequest
from creditd.wire.validation import from_validation_error

SensitivityFailurePolicy: TypeAlias = Literal["raise", "group_reward"]
_NOBODY = "policy"
"""Stands for the policy while choices are checked."""


@dataclass(frozen=True)
class SensitivityConfig:
    """How a trainer has its advantages reshaped.

    Attributes:
        parser: Who finds reasoning and answer in a completion: `tags`, `hashes`, `boxed`, `last_line`, or a mapping
            with `type`, and for tags `reasoning_tag` and `answer_tag`.
        model: Id of the policy of the service, which gets the trainer's weights whenever they changed. None with
            `in_process`.
        in_process: Whether the trainer's own model is asked, without a service. Every process asks its own.
        url: Service; None takes CREDITD_URL, or this machine.
        sensitivity: `gradient` (OAR-G), `perturbation` (OAR-P), or a mapping with `type` and `noise_std`,
            `noise_samples`, `seed`, or `token_id`.
        probe: What of the answer is watched: `answer_mean`, `last` or `answer_joint`.
        reshape: `quantile`, `beta`, `floor`, `preserve_mass`; empty for the defaults.
        on_failure: When there are no weights: `raise`, or the trainer's own advantage on every token of the completions
            concerned (`group_reward`), which is counted.
        deterministic: Whether the policy reads each completion by itself, so that others change no bit of it.
        deadline_s: Seconds for one request, retries included; also for the announcement that comes before weights, so
            that a service which is away is waited for as long at most.
        push_deadline_s: Seconds for each shard of weights once they are announced, the way to its last bit and retries
            included; the last one is answered once the policy has them all. A large model has large shards: this is for
            256 MiB.
        run: What names of runs begin with, for people who read versions of weights. Versions are `RUN-UNIQUE:STEP`,
            with another UNIQUE each time training begins, so that two runs may have the same. None: UNIQUE alone.
        most_tokens: Tokens of one pass of the trainer's own model, `in_process`.
        max_credit_share: Share of the step time above which, after three steps, one warning is given. None: never.
        api_key: Key of the service, which has to be one for administration; None takes CREDITD_API_KEY.
        record: Directory in which each exchange is kept as one file, for `creditd replay`. None: nowhere.
        keep: Files kept there, the newest ones.

    Raises:
        ValueError: If a value is not what is written here.
    """

    parser: Choice
    model: str | None = None
    in_process: bool = False
    url: str | None = None
    sensitivity: Choice = "gradient"
    probe: Choice = "answer_mean"
    reshape: Mapping[str, Any] = field(default_factory=dict)
    on_failure: SensitivityFailurePolicy = "raise"
    deterministic: bool = False
    deadline_s: float = 120.0
    push_deadline_s: float = 120.0
    run: str | None = None
    most_tokens: int = 4096
    max_credit_share: float | None = 0.25
    api_key: str | None = field(default=None, repr=False)
    record: str | None = None
    keep: int = DEFAULT_KEEP

    def __post_init__(self) -> None:
        if self.in_process == (self.model is not None):
            given = f"the model {self.model!r} and in_process=True" if self.in_process else "neither"
            raise ValueError(f"got {given}; expected the id of a policy of the service, or in_process=True")
        if self.on_failure not in get_args(SensitivityFailurePolicy):
            known = ", ".join(get_args(SensitivityFailurePolicy))
            raise ValueError(f"got on_failure {self.on_failure!r}; expected one of {known}")
        for name in ("in_process", "deterministic"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"got {name} {getattr(self, name)!r}; expected True or False")  # noqa: TRY004 - as all
        for name in ("deadline_s", "push_deadline_s", "most_tokens"):
            value: object = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"got {name} {value!r}; expected a number above 0")
        share: object = self.max_credit_share
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not share >= 0):
            raise ValueError(f"got max_credit_share {share!r}; expected a share of at least 0, or None")
        if self.run is not None and not 0 < len(self.run) <= 200:
            raise ValueError(f"got run {self.run!r}; expected a name of 1 to 200 characters")
        if type_of(self.parser) == "given" or type_of(self.sensitivity) == "given":
            raise ValueError("got the parser or the sensitivity 'given'; expected another one: nobody gives them here")
        self.request()

    def request(self) -> OarRequest:
        """The choices as the wire has them, with its defaults filled in.

        Returns:
            A request about one token.

        Raises:
            ValueError: If the wire has no such choice.
        """
        document = {
            "model": self.model or _NOBODY,
            "items": [{"completion_ids": [0], "prompt_ids": [0], "advantage": 1.0}],
            "sensitivity": choice(self.sensitivity),
            "probe": choice(self.probe),
            "reshape": dict(self.reshape),
            "parser": choice(self.parser),
        }
        try:
            return OarRequest.model_validate(document)
        except ValidationError as error:
            raise ValueError(f"the choices are refused: {from_validation_error(error).detail}") from None
