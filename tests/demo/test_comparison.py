import pytest

import comparison
import report

STEPS = (20, 200)


def run(method, seed, values, rate=0.001):
    """A run whose max@K at the two steps is given."""
    curve = [
        {"step": step, "max_at_k": value, "mean_reward": 0.1, "distinct": 4.0, "entropy": 9.0, "well_formed": 1.0}
        for step, value in zip(STEPS, values, strict=True)
    ]
    requests = {"in_trainer_log": 2, "in_service_log": 2}
    return {
        "method": method, "seed": seed, "rate": rate, "steps": 2, "curve": curve,
        "seconds_per_step": 0.1, "seconds_in_credit": 0.02, "requests": requests,
    }  # fmt: skip


def results(shapley, other):
    """Results in which Shapley and leave-one-out differ from set-level GRPO by so much, at each step."""
    noise = (0.0, 0.001, -0.001)
    runs = [
        run(method, seed, [0.4 + seed / 10 + shift + noise[seed] * (method != "set_reward") for shift in shifts])
        for seed in range(3)
        for method, shifts in (("set_reward", (0.0, 0.0)), ("shapley", shapley), ("leave_one_out", other))
    ]
    names = {"set_reward": "set-level GRPO", "shapley": "Shapley", "leave_one_out": "leave-one-out"}
    schedule = {
        "compared": STEPS,
        "steps": 200,
        "seeds": [0, 1, 2],
        "rates": [0.001],
        "grid_steps": 200,
        "grid_seed": 0,
    }
    machine = dict.fromkeys(("cpu", "cores", "python", "torch", "trl", "transformers"), "x")
    settings = {
        "schedule": schedule, "quick": False, "weights": 1, "prompts_per_step": 32, "rollouts_per_prompt": 8,
        "evaluated_sets": 512,
    }  # fmt: skip
    killed = {
        "killed_after_step": 5, "planned_steps": 50, "seconds_from_kill_to_end": 3.0, "error": "TransportError: no",
        "deadline_s": 5.0,
    }  # fmt: skip
    return {
        "settings": settings, "rules": names, "baseline": "set_reward", "runs": runs, "machine": machine,
        "grid": [one for one in runs if one["seed"] == 0], "rates": dict.fromkeys(names, 0.001),
        "references": {"the best set": 0.8}, "wall_seconds": 60.0, "killed_service": killed,
    }  # fmt: skip


def test_the_interval_is_student_s():
    """Differences 1, 2, 3: mean 2, s = 1, t(2) = 4.3027, half width 4.3027/√3."""
    found = comparison.interval([1.0, 2.0, 3.0])
    assert found.mean == pytest.approx(2.0)
    assert found.high - found.mean == pytest.approx(4.3027 / 3**0.5)
    assert found.mean - found.low == pytest.approx(4.3027 / 3**0.5)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1.0, 2.0, 3.0], "no difference"),
        ([1.0, 1.1, 0.9], "higher"),
        ([-1.0, -1.1, -0.9], "lower"),
        ([0.0, 0.0], "no difference"),
    ],
)
def test_an_interval_that_holds_zero_is_no_difference(differences, verdict):
    """The word follows from the interval alone."""
    assert comparison.interval(differences).verdict == verdict


def test_differences_are_paired_by_seed():
    """The order of the runs does not matter, and a constant difference has an interval of no width."""
    runs = [run("a", 1, (0.3, 0.6)), run("b", 2, (0.1, 0.9)), run("a", 2, (0.2, 1.0)), run("b", 1, (0.2, 0.5))]
    assert comparison.paired(runs, "a", "b", 200).low == pytest.approx(0.1)
    assert comparison.paired(runs, "a", "b", 200).high == pytest.approx(0.1)


def test_unequal_seeds_are_refused():
    """A pair that lacks one side is no pair."""
    with pytest.raises(ValueError, match="seeds"):
        comparison.paired([run("a", 1, (0, 0)), run("a", 2, (0, 0)), run("b", 1, (0, 0))], "a", "b", 20)


def test_the_best_rate_of_each_method_is_taken():
    """By the mean of the last evaluations; at a tie the smaller rate."""
    grid = [
        run("a", 0, (0.9, 0.5), rate=0.003), run("a", 0, (0.7, 0.6), rate=0.001),
        run("b", 0, (0.1, 0.5), rate=0.003), run("b", 0, (0.1, 0.5), rate=0.001),
    ]  # fmt: skip
    assert comparison.best_rates(grid) == {"a": 0.003, "b": 0.001}


def test_only_the_last_evaluations_choose_the_rate():
    """What a run was worth early does not count."""
    early = {
        **run("a", 0, (0, 0)),
        "curve": [{"step": step, "max_at_k": value} for step, value in enumerate([9, 1, 2, 3])],
    }
    assert comparison.level(early) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("shapley", "other", "first"),
    [
        ((0.1, 0.1), (0.0, 0.0), "**Shapley wins**"),
        ((0.1, -0.1), (0.0, 0.0), "**Shapley does not win**"),
        ((0.1, 0.1), (0.0, 0.2), "**Shapley does not win**"),
        ((0.0, 0.0), (-0.1, -0.1), "**Shapley does not win**"),
    ],
)
def test_the_first_line_says_when_shapley_does_not_win(shapley, other, first):
    """It wins if it is above set-level GRPO and the best of all at both steps, and else the first line says no."""
    text = report.text(results(shapley, other))
    assert text.splitlines()[0].startswith(first)


def test_the_report_names_every_difference():
    """A row per method with its interval and its verdict at both steps."""
    text = report.text(results((0.1, -0.1), (0.0, 0.2)))
    (row,) = [line for line in text.splitlines() if line.startswith("| Shapley | +")]
    assert "| higher |" in row
    assert "| lower |" in row
