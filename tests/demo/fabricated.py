"""Results that nobody measured, in the form of results.json: what the texts say of given differences."""

import comparison

STEPS = (20, 200)
NAMES = {"set_reward": "set-level GRPO", "shapley": "Shapley", "leave_one_out": "leave-one-out"}
BEST, EQUAL = 0.002, 0.001


def run(method, seed, values, rate=EQUAL, formed=1.0):
    """A run whose max@K at the two steps is given, and what share of its sets is well-formed at the end."""
    curve = [
        {"step": step, "max_at_k": value, "mean_reward": 0.1, "distinct": 4.0, "entropy": 9.0, "well_formed": share}
        for step, value, share in zip(STEPS, values, (1.0, formed), strict=True)
    ]
    requests = {"in_trainer_log": 2, "in_service_log": 2, "first": "a", "last": "b"}
    return {
        "method": method, "seed": seed, "rate": rate, "steps": 2, "curve": curve,
        "seconds_per_step": 0.1, "seconds_in_credit": 0.02, "requests": requests,
    }  # fmt: skip


def results(best, equal, *, leave_one_out=(-0.1, -0.1), same_runs=False):
    """Results in which Shapley differs from set-level GRPO by so much at each step, in each table.

    Leave-one-out differs by the same in both tables.
    """
    noise = {
        (method, seed): 0.0 if method == "set_reward" else (0.0, 0.001, -0.001)[seed]
        for method in NAMES
        for seed in range(3)
    }
    shifts = {"set_reward": {"best": (0.0, 0.0), "equal": (0.0, 0.0)}, "shapley": {"best": best, "equal": equal}}
    shifts["leave_one_out"] = {"best": leave_one_out, "equal": leave_one_out}
    tables = {"equal": EQUAL} if same_runs else {"best": BEST, "equal": EQUAL}
    runs = [
        run(
            method,
            seed,
            [0.4 + seed / 10 + shift + noise[method, seed] for shift in of[table]],
            rate,
        )
        for seed in range(3)
        for method, of in shifts.items()
        for table, rate in tables.items()
    ]
    rates = {"best": dict.fromkeys(NAMES, EQUAL if same_runs else BEST), "equal": dict.fromkeys(NAMES, EQUAL)}
    control = [run("stock", seed, (0.4 + seed / 10, 0.4 + seed / 10)) for seed in range(2)]
    schedule = {
        "compared": STEPS, "steps": 200, "seeds": [0, 1, 2], "rates": [EQUAL, BEST], "equal_rate": EQUAL,
        "grid_steps": 200, "grid_seed": 9, "control_seeds": [0, 1],
    }  # fmt: skip
    settings = {
        "schedule": schedule, "quick": False, "weights": 1, "prompts_per_step": 32, "rollouts_per_prompt": 8,
        "evaluated_sets": 512, "annealed_over_steps": 50, "request_deadline_s": 60.0,
        "outage_deadline_s": 4.0, "end_deadline_s": 5.0,
        "sources": "0", "versions": dict.fromkeys(("python", "torch", "trl", "transformers"), "x"),
    }  # fmt: skip
    lost = {"signal": "SIGKILL", "after_step": 5, "planned_steps": 50, "seconds_to_end": 3.0, "error": "Lost: no"}
    grid = [run(method, 9, (0.5, 0.5), rate) for method in NAMES for rate in (EQUAL, BEST)]
    return {
        "settings": settings, "rules": NAMES, "baseline": "set_reward", "runs": [*runs, *control],
        "machine": {"cpu": "x", "cores": 2}, "grid": grid, "rates": rates, "references": {"the best set": 0.8},
        "wall_seconds": 60.0, "lost_services": [lost, {**lost, "signal": "SIGSTOP", "seconds_to_end": 5.5}],
        "comparisons": {
            table: comparison.comparisons(comparison.at_rates(runs, of), list(NAMES), "set_reward", STEPS)
            for table, of in rates.items()
        },
    }  # fmt: skip
