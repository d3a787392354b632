"""What the demonstration of OAR trains, and how it is judged: the protocol, settled before any comparison was seen.

1. Every training starts from one checkpoint, which was taught written-out products until it is partly right. A seed
   decides the order of problems and what is drawn in a training, and nothing else. All methods have the same seeds, so
   that differences are paired, and the same rollouts in their first step.
2. The methods differ in the token advantages: those of GRPO as TRL computes them, or the same times the weights that
   the service answers with from the policy's current weights, with the published defaults. Nowhere else.
3. Every method is trained at every rate of one grid with the grid's seeds, which no comparison uses. Its rate is the
   one with the highest mean accuracy over all evaluations of a run, averaged over those seeds; the smaller at a tie.
4. At that rate it is trained with the seeds of the comparison. Accuracy is the share of held-out problems whose drawn
   answer (temperature 1) is right. Compared are, seed by seed: accuracy at the end (mean of the last three
   evaluations), over the whole curve (mean of all), at equal time (where each curve is, between evaluations on a
   straight line, when the quickest run of the seed ends), and entropy at the end (mean of the last three).
   Time is that of training, without evaluations.
   GRPO is trained at every rate with these seeds besides, so that OAR can be compared with the best of its rates in
   hindsight, which is to OAR's disadvantage.
5. An interval is a 95 % t-interval of paired differences over seeds. One that holds 0 is no difference. None is
   corrected for how many there are.
6. The claims, each judged by itself (`CLAIMS`): OAR-G above GRPO, OAR-P above GRPO and OAR-P above OAR-G, in accuracy
   at the end. `confirmed` if the interval lies above 0, `contradicted` if it lies below, else `not confirmed`. The same
   is said at equal time beside it. OAR-G is nearly free if a step takes at most `NEARLY_FREE` times as long as one of
   GRPO (confirmed), and is not if it takes more than `NOT_FREE` times as long (contradicted); the paper's figure is
   1.1. That figure is the geometric mean over seeds of ratios of processor time of training, that of the service and
   what pushing weights takes included: two trainings share the machine, so the clock is shown and does not decide.
7. Fidelity is looked at on completions that the starting checkpoint draws for held-out problems, of the form taught.
   One token of the work at a time is replaced by another of its kind (a digit by a digit, a sign by a sign), drawn
   evenly, never by the token that OAR-P itself puts there; the answer is then written greedily behind it. It has
   flipped if it is not the one that is written greedily with the token as it was. `kept`: the rest of the work stays as
   it was, which is what a sensitivity is about. `rewritten`: it is written anew, greedily, in both.
   Compared are, completion by completion, the flip rate of the ⌈L/10⌉ most sensitive tokens with that of all tokens
   (what random ones have on average), of the ⌈L/10⌉ of highest entropy, and of the ⌈L/10⌉ next to the answer; ties go
   to the earlier token. Intervals are over completions. `kept` decides.
8. The grid, the number of steps and the lessons were chosen so that GRPO alone learns in part, in pilots of GRPO alone
   with the seed 0. The other methods ran for four steps with that seed, to see what a step costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METHODS = {"grpo": "GRPO", "gradient": "OAR-G", "perturbation": "OAR-P"}
BASELINE = "grpo"
GRADIENT, PERTURBATION = "gradient", "perturbation"
CLAIMS = ((GRADIENT, BASELINE), (PERTURBATION, BASELINE), (PERTURBATION, GRADIENT))
"""The order that the paper reports: both above GRPO, OAR-P the upper bound."""
NEARLY_FREE, NOT_FREE = 1.2, 1.5
"""Ratios of the time of a step: up to which OAR-G is nearly free, and from which it is not."""
PUBLISHED_RATIOS = {GRADIENT: 1.1, PERTURBATION: 5.0}
"""What a step takes in units of one of GRPO, as the authors give it."""
LAST_POINTS = 3
PARSER = "hashes"
PROBE = "answer_mean"
MODEL = "policy"
"""What a service calls the policy."""
DEADLINE_S = 300.0
"""What a request may take, all attempts together: a machine that is busy elsewhere must not end a run."""

MEASURES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "perturbation": ("OAR-P", {"type": "perturbation"}),
    "gradient": ("OAR-G, 1 draw", {"type": "gradient", "noise_samples": 1, "seed": 0}),
    "gradient_again": ("OAR-G, 1 other draw", {"type": "gradient", "noise_samples": 1, "seed": 1}),
    "gradient_16": ("OAR-G, 16 draws", {"type": "gradient", "noise_samples": 16, "seed": 0}),
    "entropy": ("entropy", None),
    "nearness": ("next to the answer", None),
}
"""By what tokens are chosen in the study of fidelity: what it is called, and how the service is asked for it."""
OAR_MEASURES = ("perturbation", "gradient", "gradient_16")
RIVALS = ("random", "entropy", "nearness")
FLIPS = {"kept": "the rest of the work kept", "rewritten": "the rest of the work written anew"}
REPLACEMENTS = 3
"""Other tokens that are tried at each place."""


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        method: A key of `METHODS`.
        rate: Learning rate.
        seed: Of the order of problems and of everything that is drawn.
        steps: Optimizer steps; each has its own rollouts.
        evaluate_every: Steps between evaluations.
        outage: Whether its service is killed half-way and started anew.
    """

    method: str
    rate: float
    seed: int
    steps: int
    evaluate_every: int
    outage: bool = False

    @property
    def name(self) -> str:
        """Key of the run in the results."""
        suffix = " outage" if self.outage else ""
        return f"{self.method} rate {self.rate:g} seed {self.seed} steps {self.steps}{suffix}"

    @property
    def killed_in_step(self) -> int:
        """The step while whose request is computed the service is killed."""
        return self.steps // 2


@dataclass(frozen=True)
class Schedule:
    """What is run.

    Attributes:
        lessons: Batches that the starting checkpoint is taught.
        rates: The grid of learning rates, the same for every method, ascending.
        grid_seeds: Seeds of the grid, which no comparison uses.
        seeds: Seeds of the comparison.
        steps: Steps of every run.
        evaluate_every: Steps between evaluations.
        outage_steps: Steps of the run whose service is killed.
        study_texts: Completions that fidelity is looked at on.
    """

    lessons: int
    rates: tuple[float, ...]
    grid_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    evaluate_every: int
    outage_steps: int
    study_texts: int

    def grid(self) -> list[Plan]:
        """Every method at every rate."""
        return [
            Plan(method, rate, seed, self.steps, self.evaluate_every)
            for seed in self.grid_seeds
            for method in METHODS
            for rate in self.rates
        ]

    def comparison(self, best: Mapping[str, float]) -> list[Plan]:
        """Every method at its rate."""
        return [
            Plan(method, best[method], seed, self.steps, self.evaluate_every)
            for seed in self.seeds
            for method in METHODS
        ]

    def baseline(self) -> list[Plan]:
        """GRPO at every rate with the seeds of the comparison."""
        return [
            Plan(BASELINE, rate, seed, self.steps, self.evaluate_every) for rate in self.rates for seed in self.seeds
        ]

    def outage(self, best: Mapping[str, float]) -> Plan:
        """The first steps of a run of the comparison once more, with a service that is killed half-way."""
        return Plan(GRADIENT, best[GRADIENT], self.seeds[0], self.outage_steps, self.evaluate_every, outage=True)


FULL = Schedule(
    lessons=300,
    rates=(1e-4, 2e-4, 4e-4),
    grid_seeds=(10,),
    seeds=(21, 22, 23, 24, 25),
    steps=30,
    evaluate_every=3,
    outage_steps=12,
    study_texts=96,
)
QUICK = Schedule(
    lessons=200,
    rates=(1e-4, 2e-4),
    grid_seeds=(10,),
    seeds=(21, 22),
    steps=2,
    evaluate_every=1,
    outage_steps=2,
    study_texts=12,
)
