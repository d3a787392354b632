"""Results that nobody measured, in the form of scar.json: what the texts say of given differences."""

import scar_comparison
from scar_plans import CREDITS, KINDS, METHODS, OF_MODELS_ALONE, SOURCES

SEEDS = (0, 1, 2)
STEPS = (0, 10, 20, 30)
NOISE = (0.0, 0.001, -0.001)
AREAS = {"uniform": 0.5, "attention": 0.6, "leave_one_out": 0.8, "prefix": 0.75, "scar": 0.9, "shapley": 0.91}


def run(method, seed, level, rate=0.001):
    """A run that climbs from 0 to its level, and whose scores do too."""
    curve = [{"step": step, "reward": level * step / STEPS[-1], "decoys": 0.1, "distinct": 1.0} for step in STEPS]
    return {
        "method": method, "rate": rate, "seed": seed, "steps": STEPS[-1], "curve": curve,
        "scores": [point["reward"] for point in curve[1:]], "units": [8.0] * 3, "evaluations": 3840,
        "seconds_in_credit": 3.0, "seconds": 6.0, "requests": {"in_training": 30, "in_service_log": 30},
    }  # fmt: skip


def study(areas=AREAS):
    """Credits whose AUROC is given, on three texts of each kind."""
    rows = []
    for kind in KINDS:
        for source in SOURCES:
            for name in CREDITS:
                if source == "reward model" or name not in OF_MODELS_ALONE:
                    values = [areas[name] + noise for noise in (NOISE if name == "scar" else (0.0, 0.0, 0.0))]
                    area = {"mean": areas[name], "low": areas[name] - 0.01, "high": areas[name] + 0.01, "texts": 3}
                    rows.append({
                        "texts": kind, "utilities": source, "credit": name, "auroc": area, "aurocs": values,
                        "correlation": 0.5, "causes": 0.5, "decoys": 0.1, "others": 0.05,
                        "evaluations": 120, "seconds": 0.3, "methods": ["table"],
                    })  # fmt: skip
    return rows


def results(levels, areas=AREAS):
    """Results in which each method ends at its level, and SCAR's seeds are noisy."""
    runs = [
        run(method, seed, levels[method] + (NOISE[seed] if method == "scar" else 0.0))
        for seed in SEEDS
        for method in METHODS
    ]
    schedule = {
        "rates": [0.001, 0.003], "grid_seeds": [9], "seeds": list(SEEDS), "steps": STEPS[-1], "evaluate_every": 10,
        "reward_model_steps": 1, "lessons": 1, "study_texts": 3,
    }  # fmt: skip
    settings = {
        "quick": False, "schedule": schedule, "sources": "0", "versions": {}, "target": scar_comparison.TARGET,
        "weights": 1, "groups_per_step": 16, "rollouts_per_group": 8,
    }  # fmt: skip
    judged = study(areas)
    return {
        "settings": settings, "machine": {"cpu": "x", "cores": 2}, "methods": METHODS, "baseline": "sparse",
        "best_reward": 3.0, "lesson_loss": 1.9, "study": judged, "rates": dict.fromkeys(METHODS, 0.001),
        "reward_model": {
            "r_squared": 0.99, "accuracy": 0.98, "r_squared_start": 0.97, "accuracy_start": 0.96,
            "decoy_effect": 0.01, "decoy_correlation": 0.5, "seconds": 90.0,
        },
        "auroc_differences": scar_comparison.auroc_differences(judged),
        "comparisons": scar_comparison.comparisons(runs), "wall_seconds": 900.0, "load_before": 0.1,
        "costs": {
            method: {"evaluations": 128 * (1 + place), "seconds": 0.2, "processor_seconds": 0.128}
            for place, method in enumerate(METHODS)
        },
        "processor_seconds": 1500.0,
        "grid": [run(method, 9, 1.0, rate) for method in METHODS for rate in (0.001, 0.003)], "runs": runs,
        "baseline_apart": False, "baseline_runs": [
            run("sparse", seed, levels["sparse"] + extra, rate)
            for seed in SEEDS
            for extra, rate in ((0.0, 0.001), (0.3, 0.003))
        ],
    }  # fmt: skip
