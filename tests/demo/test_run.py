"""The whole demonstration, short: real TRL, a real service, and its death."""

import json
import os
import subprocess
import sys

import pytest

from demo.conftest import DEMO

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")
pytest.importorskip("matplotlib", reason="the lane `trainer` installs matplotlib")
pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("ignore")]

LIMIT_S = 120.0
"""What a quick run takes; the test waits ten times as long."""
RULES = {"set_reward", "own_reward", "shapley", "leave_one_out", "annealed", "prefix_gain"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What `run.py --quick` leaves behind."""
    directory = tmp_path_factory.mktemp("demo")
    command = [sys.executable, str(DEMO / "run.py"), "--quick", "--out", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10 * LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="module")
def results(out):
    """Its results.json."""
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_every_method_ran_with_every_seed_and_rate(results):
    """The grid is the same for all methods, and so are the seeds; no seed of the comparison is that of the grid."""
    schedule = results["settings"]["schedule"]
    assert set(results["rules"]) == RULES
    assert sorted((run["method"], run["rate"]) for run in results["grid"]) == sorted(
        (method, rate) for method in RULES for rate in schedule["rates"]
    )
    compared = [run for run in results["runs"] if run["method"] != "stock"]
    assert sorted((run["method"], run["seed"]) for run in compared) == sorted(
        (method, seed) for method in RULES for seed in schedule["seeds"]
    )
    assert schedule["grid_seed"] not in schedule["seeds"]
    assert all(run["rate"] == results["rates"][run["method"]] for run in compared)


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


def test_a_killed_service_stops_the_training_within_the_deadline(results):
    """Under `raise` nothing is trained on without credit."""
    killed = results["killed_service"]
    assert killed["steps"] == killed["killed_after_step"] < killed["planned_steps"]
    assert 0 < killed["seconds_from_kill_to_end"] <= killed["deadline_s"] + 1.0
    assert killed["error"]


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
