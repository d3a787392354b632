"""Results that nobody measured, in the form of oar.json: what the texts say of given differences."""

import numpy as np

import oar_comparison
import oar_flips
import oar_task
from oar_plans import FLIPS, MEASURES, METHODS, OAR_MEASURES, Plan, Schedule

SEEDS = (0, 1, 2)
STEPS = (0, 10, 20, 30)
NOISE = (0.0, 0.001, -0.001)
SECONDS = {"grpo": 1.0, "gradient": 1.1, "perturbation": 5.0}
"""What a step takes."""
SCHEDULE = Schedule(1, (0.0001, 0.0002), (9,), SEEDS, STEPS[-1], 10, 20, 4)


def run(method, seed, level, rate=0.0001, steps=STEPS, pushes=None):
    """A run that climbs from 0.5 to its level, while entropy falls from 0.1 to 0.04."""
    share = [step / STEPS[-1] for step in steps]
    curve = [
        {
            "step": step, "seconds": step * SECONDS[method], "processor_seconds": step * SECONDS[method] * 2,
            "accuracy": 0.5 + (level - 0.5) * done, "well_formed": 0.98, "entropy": 0.1 - 0.06 * done,
        }
        for step, done in zip(steps, share, strict=True)
    ]  # fmt: skip
    n = steps[-1]
    by_step = {"reward": [0.5] * n, "zero_std": [0.25] * n}
    if method != "grpo":
        credit = [0.5] * n
        if pushes:
            credit[n // 2 - 1] = 20.0
        by_step |= {
            "effective_share": [0.8] * n, "top_share": [0.2] * n, "credit_s": credit, "push_s": [0.1] * n,
            "pushes": [1.0] * (n - 1) + [1.0 + (pushes or 0)], "without_contrast": [0.25] * n,
        }  # fmt: skip
    return {
        "method": method, "rate": rate, "seed": seed, "steps": n, "curve": curve, "greedy": 0.9,
        "seconds": curve[-1]["seconds"], "processor_seconds": curve[-1]["processor_seconds"], "by_step": by_step,
        "warnings": [], "answered": 0 if method == "grpo" else n,
    }  # fmt: skip


def fidelity(sensitive=0.9, texts=4):
    """Four completions whose digits of sums flip the answer, found by sensitivity and by nothing else."""
    kinds = np.array([oar_task.kind_of(place) for place in range(oar_task.REASONING)])
    results = np.flatnonzero(kinds == "result")
    noise = np.linspace(0.0, 0.02, texts)[:, None]
    flips = {name: np.where(kinds == "result", sensitive, 0.1) + noise for name in FLIPS}
    at_results = np.zeros((texts, oar_task.REASONING))
    at_results[:, results] = 1.0
    first = np.tile(-np.arange(oar_task.REASONING, dtype=np.float64), (texts, 1))
    scores = dict.fromkeys(MEASURES, at_results + 0.001 * first)
    scores |= {"entropy": first, "nearness": -first}
    weights = dict.fromkeys(OAR_MEASURES, 0.5 + at_results)
    return {"texts": texts, "right": 0.5, **oar_flips.summary(scores, weights, flips)}


def results(levels, *, sensitive=0.9):
    """Results in which each method ends at its level, with a noise that differs between the variants of OAR."""
    runs = [
        run(method, seed, levels[method] + place * NOISE[seed])
        for seed in SEEDS
        for place, method in enumerate(METHODS)
    ]
    lost = run("gradient", 0, levels["gradient"], steps=STEPS[:3], pushes=1)
    lost |= {"lost": {"weights_before": 10, "requests_before": 9, "seconds": 6.0}, "unknown": 1}
    settings = {
        "quick": False, "schedule": vars(SCHEDULE), "sources": "0", "versions": {}, "weights": 500000,
        "prompts_per_step": 16, "rollouts_per_prompt": 8,
        "new_tokens": 33, "reasoning_tokens": 27, "evaluated_problems": 384,
    }  # fmt: skip
    baseline = [
        run("grpo", seed, levels["grpo"] + extra, rate)
        for seed in SEEDS
        for rate, extra in ((0.0001, 0.0), (0.0002, 0.03))
    ]
    return {
        "settings": settings, "machine": {"cpu": "x", "cores": 2}, "at_a_time": 2, "methods": METHODS,
        "lesson_loss": 0.1, "greedy_at_start": 0.95, "fidelity": fidelity(sensitive),
        "rates": dict.fromkeys(METHODS, 0.0001),
        "comparisons": oar_comparison.comparisons(runs), "ratios": oar_comparison.ratios(runs), "outage": lost,
        "outage_compared": oar_comparison.outage_of(lost, run("gradient", 0, levels["gradient"])),
        "load_before": 0.1, "wall_seconds": 900.0, "processor_seconds": 1500.0, "runs": runs,
        "grid": [run(method, 9, 0.7, rate) for method in METHODS for rate in (0.0001, 0.0002)],
        "baseline_runs": baseline,
    }  # fmt: skip


PLAN = Plan("gradient", 0.0001, 0, 12, 3, outage=True)
