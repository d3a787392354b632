"""What is trained: rules, learning rates, seeds and steps. Nothing here needs a framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RULES = {
    "set_reward": "set-level GRPO",
    "own_reward": "own reward",
    "shapley": "Shapley",
    "leave_one_out": "leave-one-out",
    "annealed": "Shapley → leave-one-out",
    "prefix_gain": "prefix gain",
}
"""Methods by the name of their rule on the wire; `annealed` moves from one rule to the other."""
BASELINE = "set_reward"
STOCK = "stock"
"""The control: TRL's own GRPOTrainer with the set's reward, and no creditd anywhere."""
ANNEALED_OVER = 50
"""Steps in which `annealed` moves, in the grid and in the comparison alike."""


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        method: A key of `RULES`, or `STOCK`.
        rate: Learning rate.
        seed: Of the weights, the lessons, the order of prompts, the sampling and the hidden types.
        steps: Optimizer steps; each has its own 256 rollouts.
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
        equal_rate: The one of the grid at which all methods are compared too.
        grid_seed: Seed of the grid, which no comparison uses.
        grid_steps: Steps of a run of the grid.
        seeds: Seeds of the comparison.
        steps: Steps of a run of the comparison.
        evaluate_every: Steps between evaluations.
        compared: Steps at which methods are compared; the last one is the end.
        control_seeds: Seeds of the control without creditd, which runs at the equal rate; some of `seeds`.
    """

    rates: tuple[float, ...]
    equal_rate: float
    grid_seed: int
    grid_steps: int
    seeds: tuple[int, ...]
    steps: int
    evaluate_every: int
    compared: tuple[int, ...]
    control_seeds: tuple[int, ...]

    def grid(self) -> list[Plan]:
        """Every method at every rate, on one seed."""
        return [
            Plan(method, rate, self.grid_seed, self.grid_steps, self.evaluate_every)
            for method in RULES
            for rate in self.rates
        ]

    def tables(self, best: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """The learning rate of every method in each of the two tables: its best one, and one for all."""
        return {"best": dict(best), "equal": dict.fromkeys(RULES, self.equal_rate)}

    def comparison(self, best: Mapping[str, float]) -> list[Plan]:
        """The runs of both tables; what stands in both is one run."""
        plans = [
            Plan(method, rates[method], seed, self.steps, self.evaluate_every)
            for seed in self.seeds
            for method in RULES
            for rates in self.tables(best).values()
        ]
        return list(dict.fromkeys(plans))

    def control(self) -> list[Plan]:
        """The runs without creditd."""
        return [Plan(STOCK, self.equal_rate, seed, self.steps, self.evaluate_every) for seed in self.control_seeds]

    @property
    def most_steps(self) -> int:
        """Optimizer steps of everything, when no method's best rate is the equal one."""
        compared = len(self.tables({})) * len(RULES) * len(self.seeds) + len(self.control_seeds)
        return len(RULES) * len(self.rates) * self.grid_steps + compared * self.steps


FULL = Schedule((3e-4, 1e-3, 2e-3), 1e-3, 10, 100, (21, 22, 23, 24), 200, 10, (20, 40, 200), (21, 22, 23))
"""At most 12,000 steps: at a sixth of a second on each of two cores 17 minutes.

The design was settled in pilots with the seeds 0 to 5 and 10 to 15; none of them is compared.
"""
QUICK = Schedule((1e-3, 2e-3), 1e-3, 10, 5, (21, 22), 10, 5, (5, 10), (21, 22))
