"""How a trainer asks for credit: rules, schedules, and what happens when there is none.

What can be checked without asking is refused where it is written down, in the words of the argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from creditd.client.bodies import type_of, wanted_by
from creditd.client.recording import DEFAULT_KEEP

Choice: TypeAlias = str | Mapping[str, Any]
Schedule: TypeAlias = Callable[[int], Choice]
FailurePolicy: TypeAlias = Literal["raise", "group_reward", "mask", "local"]


@dataclass(frozen=True)
class Anneal:
    """A schedule that moves from one rule to another over the first steps of a run.

    Attributes:
        start: Rule at step 0.
        end: Rule from step `steps` on.
        steps: Length of the way, ≥ 1.
    """

    start: str
    end: str
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"anneal needs steps ≥ 1: got {self.steps}")

    def __call__(self, step: int) -> Choice:
        """The rule at a step."""
        return {"type": "blend", "from": self.start, "to": self.end, "position": min(1.0, step / self.steps)}


def anneal(start: str, end: str, *, steps: int) -> Anneal:
    """A schedule from rule `start` to rule `end` over `steps` optimizer steps; a pure function of the step."""
    return Anneal(start, end, steps)


@dataclass(frozen=True)
class CreditConfig:
    """How a trainer asks for credit.

    Attributes:
        url: Service, or `local:`; None takes CREDITD_URL, or this machine.
        credit: Rule, or a schedule: a function of the trainer's global step, never of how often it was called.
        utility: What a set is worth.
        advantage: How credits become advantages.
        tokens: What tokens outside the candidates receive, and whether lengths are evened out.
        candidates: K that the prompt asks for; surplus candidates do not play. None: there is no such number.
        malformed: More policies for malformed sets, as on the wire.
        on_failure: When there is no credit: `raise`, the plain advantage of the whole response among those of its group
            whose own reward is known (`group_reward`; 0 where it is not, so that no response is compared by the other
            reward functions alone), 0 for every group that is concerned (`mask`), or credit computed in this process
            (`local`, not where a model of the service gives the rewards: then nobody has them without it). Each is
            counted.
        credit_in_eval: Whether evaluation asks too.
        deterministic: Whether the model that gives the rewards reads each set by itself, so that the same completions
            have the same bits whatever else the service does; it costs what sets would share. Without a model it
            changes nothing: those answers have the same bits always.
        deadline_s: Seconds for one call, retries included.
        max_credit_share: Share of the step time above which, after three steps, one warning is given. None: never.
        api_key: Key of the service; None takes CREDITD_API_KEY.
        record: Directory in which each exchange is kept as one file, for `creditd replay`. None: nowhere.
        keep: Files kept there, the newest ones.

    Raises:
        ValueError: If a value is not what is written here.
    """

    url: str | None = None
    credit: Choice | Schedule = "shapley"
    utility: Choice = "max"
    advantage: Choice = "pooled"
    tokens: Mapping[str, Any] = field(default_factory=lambda: {"other": "set"})
    candidates: int | None = None
    malformed: Mapping[str, Any] = field(default_factory=dict)
    on_failure: FailurePolicy = "raise"
    credit_in_eval: bool = False
    deterministic: bool = False
    deadline_s: float = 120.0
    max_credit_share: float | None = 0.25
    api_key: str | None = field(default=None, repr=False)
    record: str | None = None
    keep: int = DEFAULT_KEEP

    def __post_init__(self) -> None:
        if self.on_failure not in get_args(FailurePolicy):
            raise ValueError(
                f"got on_failure {self.on_failure!r}; expected one of {', '.join(get_args(FailurePolicy))}"
            )
        if not isinstance(self.deterministic, bool):
            raise ValueError(f"got deterministic {self.deterministic!r}; expected True or False")  # noqa: TRY004 - as all
        for name in ("tokens", "malformed"):
            value: object = getattr(self, name)
            if not isinstance(value, Mapping):
                raise ValueError(f"got {name} {value!r}; expected a mapping, empty for the defaults")  # noqa: TRY004 - as all
        if self.candidates is not None and not _is_count(self.candidates):
            raise ValueError(f"got candidates {self.candidates!r}; expected a whole number of at least 1, or None")
        if self.max_credit_share is not None and not _is_share(self.max_credit_share):
            raise ValueError(f"got max_credit_share {self.max_credit_share!r}; expected a share of at least 0, or None")
        self._check_utility()
        if not callable(self.credit):
            self._check_rule(self.credit, "credit is")

    def _check_utility(self) -> None:
        if callable(self.utility):
            raise ValueError("utility is a function; expected a name or a mapping: candidates have rewards here")  # noqa: TRY004 - as all
        if type_of(self.utility) == "model":
            raise ValueError(
                "utility is a model's; expected one of rewards: the id of a reward model takes the place of the "
                "candidate reward function"
            )
        wanted = wanted_by(self.utility, "shapley", tokens=True)
        if set(wanted.of_sets + wanted.of_candidates) - {"reward"}:
            needed = ", ".join(sorted(set(wanted.of_sets + wanted.of_candidates) - {"reward"}))
            raise ValueError(f"utility needs {needed}, which no candidate reward gives; expected one of rewards alone")

    def rule_at(self, step: int) -> Choice:
        """The rule of a step.

        Args:
            step: The trainer's global step.

        Returns:
            A rule that has a name.

        Raises:
            ValueError: If the schedule returned anything else, or a mixture for another number of candidates.
        """
        if not callable(self.credit):
            return self.credit
        rule = self.credit(step)
        self._check_rule(rule, f"the schedule returned, at step {step},")
        return rule

    def _check_rule(self, rule: Choice, said: str) -> None:
        if not isinstance(type_of(rule), str):
            raise ValueError(f"{said} {rule!r}; expected a rule such as 'shapley', or a mapping with its type")  # noqa: TRY004 - as all
        if "union" in wanted_by("max", rule, tokens=True).of_candidates:
            raise ValueError(f"{said} owen, which needs unions of candidates; expected another rule")
        for part in _parts(rule):
            weights = part.get("weights")
            if self.candidates is None or part.get("type") != "mixture" or not isinstance(weights, list | tuple):
                continue
            if len(weights) != self.candidates:
                raise ValueError(
                    f"{said} a mixture of {len(weights)} weights; expected {self.candidates}, one per candidate that "
                    "`candidates` asks for"
                )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _parts(rule: Choice) -> list[Mapping[str, Any]]:
    """The rule and, of a blend, its two ends, as far as they are mappings."""
    if not isinstance(rule, Mapping):
        return []
    return [rule, *(end for end in (rule.get("from"), rule.get("to")) if isinstance(end, Mapping))]
