"""The whole demonstration, short: real TRL, a real service, and its death."""

import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from creditd.client import Client
from demo.conftest import DEMO
from plans import RULES

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")
pytest.importorskip("matplotlib", reason="the lane `trainer` installs matplotlib")
pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("ignore")]

LIMIT_S = 120.0
"""What a quick run may take on two quiet cores; the test waits ten times as long."""
CORES = 2


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What `run.py --quick` leaves behind, and the processor time that it took."""
    directory = tmp_path_factory.mktemp("demo")
    command = [sys.executable, str(DEMO / "run.py"), "--quick", "--out", str(directory)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10 * LIMIT_S)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def out(quick):
    """The directory of the results."""
    return quick[0]


@pytest.fixture(scope="module")
def results(out):
    """Its results.json."""
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_every_method_ran_with_every_seed_at_both_rates(results):
    """The grid is the same for all methods, and so are the seeds; no seed of the comparison is that of the grid."""
    schedule = results["settings"]["schedule"]
    assert set(results["rules"]) == set(RULES)
    assert sorted((run["method"], run["rate"]) for run in results["grid"]) == sorted(
        (method, rate) for method in RULES for rate in schedule["rates"]
    )
    made = {(run["method"], run["rate"], run["seed"]) for run in results["runs"]}
    assert len(made) == len(results["runs"])
    assert made == {
        (method, rate, seed)
        for rates in results["rates"].values()
        for method, rate in rates.items()
        for seed in schedule["seeds"]
    } | {("stock", schedule["equal_rate"], seed) for seed in schedule["control_seeds"]}
    assert schedule["grid_seed"] not in schedule["seeds"]


def test_a_quick_run_costs_what_it_may(quick):
    """The processor time of two minutes on two cores, whatever else the machine does."""
    assert quick[1] <= CORES * LIMIT_S


def test_the_settings_say_what_the_result_depends_on(results):
    """The sources and the versions, which a continued run must share, and the length of the annealing."""
    settings = results["settings"]
    assert settings["annealed_over_steps"] == 50
    assert len(settings["sources"]) == 16
    assert {"python", "torch", "trl", "transformers"} <= set(settings["versions"])


def test_every_run_says_what_it_learned(results):
    """Each point has the quality, the diversity and the entropy; each run the time in credit."""
    for run in (*results["grid"], *results["runs"]):
        assert run["curve"][0]["step"] == 0
        assert run["curve"][-1]["step"] == run["steps"]
        for point in run["curve"]:
            assert 0 < point["mean_reward"] <= point["max_at_k"] < 1
            assert 1 <= point["distinct"] <= 4
            assert point["entropy"] > 0
        assert run["method"] == "stock" or 0 < run["seconds_in_credit"] < run["seconds"]


def test_all_methods_start_from_the_same_policy(results):
    """Of one seed, every method has the same first point: the policy that only knows the format."""
    for seed in results["settings"]["schedule"]["seeds"]:
        starts = [run["curve"][0] for run in results["runs"] if run["seed"] == seed]
        assert all(start == starts[0] for start in starts)


def test_every_step_asked_the_service(results):
    """The ids in the trainer's log are those of the service's log, one per step; the control has none."""
    for run in results["runs"]:
        expected = 0 if run["method"] == "stock" else run["steps"]
        assert run["requests"]["in_trainer_log"] == run["requests"]["in_service_log"] == expected


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_service_stops_the_training_within_the_deadline(results, kind):
    """Under `raise` nothing is trained on without credit, whether the service is gone or hangs."""
    (lost,) = [one for one in results["lost_services"] if one["signal"] == kind.name]
    assert lost["steps"] == lost["after_step"] < lost["planned_steps"]
    assert 0 < lost["seconds_to_end"] <= results["settings"]["end_deadline_s"]
    assert lost["error"]


def test_the_control_learns_from_the_advantages_of_creditd():
    """Of the same sets, the rewards that the control adds are the token advantages of set-level GRPO, up to a factor.

    The sets' part has the same factor in all groups, √((GK − 1)/(K(G − 1))) as `set_reward` pools copies; the format's
    part has none.
    """
    import task
    import training

    rng = np.random.default_rng(5)
    rewards = rng.random((3 * training.GROUP, task.K))
    formed = (rng.random(len(rewards)) < 0.7).astype(float)
    with Client("local:") as client:
        result = client.shapley(
            rewards.tolist(),
            groups=[row // training.GROUP for row in range(len(rewards))],
            spans=[[(place, place + 1) for place in range(task.K)]] * len(rewards),
            n_tokens=[task.K + 1] * len(rewards),
            set_rewards=formed.tolist(),
            credit="set_reward",
            tokens={"other": "set"},
        )
    size = training.GROUP * task.K
    factor = np.sqrt((size - 1) / (size - task.K))
    control = factor * np.array(training.standardised(rewards.max(axis=1).tolist()))
    control += np.array(training.standardised(formed.tolist()))
    for row, tokens in enumerate(result.token_advantages):
        assert tokens == pytest.approx(control[row], abs=2e-3)  # ε = 1e-4 beside deviations of about 0.1


def test_figure_and_text_are_there(out):
    """A picture, a text whose first line gives the verdict, and no file of unfinished runs."""
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Shapley" in (out / "report.md").read_text(encoding="utf-8").splitlines()[0]
    assert not (out / "progress.json").exists()


def test_finished_trainings_are_not_repeated(tmp_path):
    """What has ended is read again from disk, unless it is of other settings."""
    code = (
        "import run, sys\nfrom pathlib import Path\n"
        "first = run.Progress(Path(sys.argv[1]), {'steps': 1})\nfirst.add('a', {'curve': []})\n"
        "again = run.Progress(Path(sys.argv[1]), {'steps': 1})\nother = run.Progress(Path(sys.argv[1]), {'steps': 2})\n"
        "print(sorted(again.runs), sorted(other.runs), again.seconds > 0)"
    )
    paths = os.pathsep.join([str(DEMO), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "progress.json")],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths}, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['a'] [] True"
