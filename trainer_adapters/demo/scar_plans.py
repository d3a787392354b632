"""What the demonstration of SCAR trains, and how it is compared: the protocol, settled before any comparison was seen.

1. Every training starts from one checkpoint, which knows the form of a note and prefers no noun. A seed decides what is
   drawn in a training, and nothing else. All methods have the same seeds, so that differences are paired.
2. The methods differ in the credit and the α of their requests (`CHOICES`), nowhere else.
3. Every method is trained at every rate of one grid with the grid's seeds, which no comparison uses. Its rate is the
   one with the highest mean planted reward over all evaluations of a run, averaged over those seeds; the smaller at a
tie. 4. At that rate it is trained with the seeds of the comparison. Compared are, seed by seed, the planted reward at
   the end (mean of the last three evaluations), its mean over the whole curve, and the first evaluated step at which it
   reaches `TARGET`; a run that never does counts with its last step. The planted reward, not the model's score, is what
   a policy is judged by; the score is shown beside it.
   The sparse method is trained at every rate with these seeds besides, so that SCAR can be compared with the best of
   its rates in hindsight, which is to SCAR's disadvantage.
5. An interval is a 95 % t-interval of paired differences over seeds. One that holds 0 is no difference. None is
   corrected for how many there are.
6. The AUROC of a credit is, text by text, the probability that a unit that is a cause has a larger |credit| than one
   that is none, ties counting one half. The texts are fixed: held-out notes as the reward model is taught them, and
   notes of the starting checkpoint. Intervals are over texts.
7. The task was made so hard, and the number of steps and the grid so chosen, that the sparse method alone learns in
   part, in pilots with the seeds 0 to 9. No other method was run in them.
8. A first whole run, of 50 steps at 0.001, 0.002 and 0.004, was thrown away. Its policies were free to leave out the
   marks between remarks, and did, under the sparse reward as elsewhere, so that a note was one unit; and every method
   had chosen the largest rate. In it no credit reached more than the sparse reward either. Since then policies write
   notes in their form and nothing else, the grid goes further up, the steps are 40, and the seeds are new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METHODS = {
    "sparse": "sparse",
    "uniform": "uniform",
    "attention": "attention",
    "leave_one_out": "leave-one-out",
    "scar": "SCAR",
}
BASELINE = "sparse"
SCAR = "scar"
BUDGET = 64
"""Evaluations of a completion under `auto`: exact Shapley values of up to 6 units, Owen values of up to 9."""
ESTIMATOR = {"type": "auto", "budget": BUDGET}
SEGMENTATION = {"type": "span", "max_units": 24}
MODEL = "rm"
"""What the service calls the reward model."""
DEADLINE_S = 300.0
"""What a request may take, all attempts together: a machine that is busy elsewhere must not end a run."""
CHOICES: dict[str, dict[str, Any]] = {
    "sparse": {"credit": "uniform", "alpha": 0.0},
    "uniform": {"credit": "uniform", "alpha": 1.0},
    "attention": {"credit": "attention", "alpha": 1.0},
    "leave_one_out": {"credit": "leave_one_out", "alpha": 1.0},
    "scar": {"credit": "auto", "alpha": 1.0},
}
"""What a request of each method says; α = 0 is the reward model's score on the whole completion, that is GRPO."""
TARGET = 1.75
"""Planted reward that is waited for; the best is 3."""
LAST_POINTS = 3

KINDS = {
    "taught": "held-out notes as the reward model is taught them",
    "start": "notes of the starting checkpoint's kind",
}
"""Texts that credits are judged on."""
SOURCES = {"reward model": "by the reward model", "planted reward": "by the planted reward itself"}
"""What says what the texts are worth."""
CREDITS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "uniform": ("uniform (and sparse)", "uniform", None),
    "attention": ("attention", "attention", None),
    "leave_one_out": ("leave-one-out", "leave_one_out", None),
    "prefix": ("prefix", "prefix", None),
    "scar": ("SCAR (Owen values)", "auto", ESTIMATOR),
    "shapley": ("exact Shapley values", "shapley", {"type": "exact", "budget": 256}),
}
"""Credits that are judged: what they are called, the credit of the request and its estimator."""
OF_MODELS_ALONE = ("attention",)
"""Those that a function which says what a text is worth does not have."""


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        method: A key of `METHODS`.
        rate: Learning rate.
        seed: Of everything that is drawn.
        steps: Optimizer steps; each has its own 128 rollouts.
        evaluate_every: Steps between evaluations.
    """

    method: str
    rate: float
    seed: int
    steps: int
    evaluate_every: int

    @property
    def name(self) -> str:
        """Key of the run in the results."""
        return f"{self.method} rate {self.rate:g} seed {self.seed} steps {self.steps}"


@dataclass(frozen=True)
class Schedule:
    """What is run.

    Attributes:
        rates: The grid of learning rates, the same for every method, ascending.
        grid_seeds: Seeds of the grid, which no comparison uses.
        seeds: Seeds of the comparison.
        steps: Steps of every run.
        evaluate_every: Steps between evaluations.
        reward_model_steps: Batches that the reward model is taught.
        lessons: Batches that the starting checkpoint is taught.
        study_texts: Texts of each kind that credits are judged on.
    """

    rates: tuple[float, ...]
    grid_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    evaluate_every: int
    reward_model_steps: int
    lessons: int
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
        """The sparse method at every rate with the seeds of the comparison."""
        return [
            Plan(BASELINE, rate, seed, self.steps, self.evaluate_every) for rate in self.rates for seed in self.seeds
        ]


FULL = Schedule((2e-3, 4e-3, 8e-3), (10,), (31, 32, 33, 34, 35), 40, 5, 2200, 300, 200)
QUICK = Schedule((1e-3, 2e-3), (10,), (21, 22), 4, 2, 60, 60, 12)
