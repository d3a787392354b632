"""The whole demonstration of SCAR, short: a model that is taught, a real service, and trainings against it."""

import json
import os
import subprocess
import sys

import pytest

from demo.conftest import DEMO
from scar_plans import CREDITS, KINDS, METHODS, OF_MODELS_ALONE, QUICK, SOURCES

pytest.importorskip("trl", reason="the lane `trainer` installs transformers and torch")
pytest.importorskip("matplotlib", reason="the lane `trainer` installs matplotlib")
pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("ignore")]

LIMIT_S = 1200.0
"""What the test waits for a run that takes about a minute on two quiet cores."""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What `scar_run.py --quick` leaves behind."""
    directory = tmp_path_factory.mktemp("demo_scar")
    command = [sys.executable, str(DEMO / "scar_run.py"), "--quick", "--out", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="module")
def results(out):
    """Its scar.json."""
    return json.loads((out / "scar.json").read_text(encoding="utf-8"))


def test_every_method_ran_with_every_seed(results):
    """The grid is the same for all methods, and so are the seeds; no seed of the comparison is one of the grid."""
    grid = {(run["method"], run["rate"], run["seed"]) for run in results["grid"]}
    assert grid == {(method, rate, seed) for method in METHODS for rate in QUICK.rates for seed in QUICK.grid_seeds}
    assert {(run["method"], run["seed"]) for run in results["runs"]} == {
        (method, seed) for method in METHODS for seed in QUICK.seeds
    }
    assert not set(QUICK.seeds) & set(QUICK.grid_seeds)
    assert all(run["rate"] == results["rates"][run["method"]] for run in results["runs"])


def test_every_number_came_from_the_service(results):
    """Each step is a request that stands in the log of the service; methods read as many texts as they need."""
    per_note = {}
    for run in results["runs"]:
        assert run["requests"] == {"in_training": QUICK.steps, "in_service_log": QUICK.steps}
        assert len(run["scores"]) == QUICK.steps
        per_note[run["method"]] = run["evaluations"]
    assert 0 < per_note["sparse"] < per_note["leave_one_out"] < per_note["scar"]


def test_uniform_credit_is_the_sparse_reward(results):
    """In the GRPO form the two have the same advantages but for rounding, so the first steps draw the same notes."""
    first = {(run["method"], run["seed"]): run["scores"][:2] for run in results["grid"]}
    for seed in QUICK.grid_seeds:
        assert first["uniform", seed] == pytest.approx(first["sparse", seed], abs=1e-3)


def test_every_credit_is_judged_on_every_kind_of_text(results):
    """By the model and by the planted reward; attention is of models alone, and is not the same for all units."""
    judged = {(row["texts"], row["utilities"], row["credit"]): row for row in results["study"]}
    assert set(judged) == {
        (kind, source, name)
        for kind in KINDS
        for source in SOURCES
        for name in CREDITS
        if source == "reward model" or name not in OF_MODELS_ALONE
    }
    for kind in KINDS:
        assert judged[kind, "reward model", "uniform"]["auroc"]["mean"] == 0.5
        assert judged[kind, "planted reward", "shapley"]["correlation"] == pytest.approx(1.0)
        assert judged[kind, "planted reward", "shapley"]["auroc"]["mean"] > 0.9
        assert len(set(judged[kind, "reward model", "attention"]["aurocs"])) > 1
    assert judged["start", "reward model", "scar"]["methods"] == ["owen_tree"]


def test_figure_and_text_are_there(out):
    """A picture, a text that says that it means nothing, and no file of unfinished runs."""
    assert (out / "scar_curves.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "scar_report.md").read_text(encoding="utf-8").startswith("*A quick run")
    assert not (out / "scar_progress.json").exists()


def test_offsets_are_those_of_the_adapter():
    """The characters of words, found in less time, are what one incremental decode finds."""
    code = (
        "import scar_models, scar_training\nfrom creditd.adapters.completions import token_offsets\n"
        "tokenizer = scar_models.word_tokenizer()\nwords = 'old lens , new case . <end>'.split()\n"
        "ids = tokenizer.convert_tokens_to_ids(words)\n"
        "print(scar_training.offsets_of(words) == token_offsets(ids, lambda run: tokenizer.decode(run, "
        "skip_special_tokens=True)), scar_training.offsets_of([]))"
    )
    paths = os.pathsep.join([str(DEMO), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths}, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True ('', [])"
