"""Two gloo processes whose advantages are reshaped: one asks for both, or each asks its own model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

from adapters.trainers import MARKS, asked, recorded
from services import running_service

pytestmark = MARKS
HANG_S = 60.0
"""Far less than the half hour for which a process waits for another that has gone."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What both processes wrote down about runs of each kind."""
    directory = tmp_path_factory.mktemp("processes")
    script = Path(__file__).with_name("two_reasoners.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with running_service(script=script.with_name("policy_service.py"), directory=directory) as url:
        command = [sys.executable, *launcher, str(script), str(directory), url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.fixture(scope="module")
def ranks(folder):
    """The outcomes of each process, by the name of the run."""
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_one_request_asks_for_both_processes(folder, ranks):
    """Every row has its own weights, and both log the same; weights are handed over once for each step."""
    batches = recorded(folder / "wire")
    assert [rank["served"]["error"] for rank in ranks] == [None, None]
    assert len(batches) == 2
    for number, batch in enumerate(batches):
        rows = [row for rank in ranks for row in rank["served"]["advantages"][number]]
        assert len(rows) == len(batch) == 4
        for row, values in zip(rows, batch, strict=True):
            assert row == pytest.approx([*values, *[0.0] * (len(row) - len(values))], abs=1e-6)
    versions = [request["weight_version"].rpartition(":") for request in asked(folder / "wire")]
    assert [number for _, _, number in versions] == ["0", "1"]
    assert len({run for run, _, _ in versions}) == 1
    for name in ("credit/effective_share", "credit/version_lag", "credit/pushes", "credit/fallbacks"):
        assert ranks[0]["served"]["log"][name] == ranks[1]["served"]["log"][name]
    assert ranks[0]["served"]["log"]["credit/pushes"] == 1.0


def test_both_processes_lose_the_service_together(ranks):
    """Both raise the same, or both keep their advantages."""
    errors = {rank["raise"]["error"] for rank in ranks}
    assert len(errors) == 1
    assert errors.pop().startswith(("TransportError", "DeadlineExceededError"))
    assert all(rank["raise"]["seconds"] < HANG_S for rank in ranks)
    for rank in ranks:
        assert rank["group_reward"]["error"] is None
        assert rank["group_reward"]["log"]["credit/fallbacks"] == rank["group_reward"]["log"]["credit/errors"] == 1.0
        for batch, masks in zip(rank["group_reward"]["advantages"], rank["group_reward"]["masks"], strict=True):
            for row, mask in zip(batch, masks, strict=True):
                assert len({value for value, kept in zip(row, mask, strict=True) if kept}) == 1


@pytest.mark.parametrize("method", ["gradient", "perturbation"])
def test_each_process_asks_its_own_model(method, ranks):
    """Rows that are equal have equal advantages in both, and both log the same."""
    runs = [rank[method] for rank in ranks]
    assert [run["error"] for run in runs] == [None, None]
    assert runs[0]["advantages"] == runs[1]["advantages"]
    first = [row for row, mask in zip(runs[0]["advantages"][0], runs[0]["masks"][0], strict=True) if sum(mask) == 6]
    assert len(set(first[0][:3])) == 3
    assert runs[0]["log"]["credit/effective_share"] == runs[1]["log"]["credit/effective_share"] < 1.0


@pytest.mark.parametrize("method", ["gradient", "perturbation"])
def test_processes_with_unequally_much_to_do_do_not_wait_for_ever(method, ranks):
    """The one with less makes as many passes as the other."""
    runs = [rank[f"unequal {method}"] for rank in ranks]
    assert [run["error"] for run in runs] == [None, None]
    assert all(run["seconds"] < HANG_S for run in runs)
    assert runs[0]["log"]["credit/reweighted"] == runs[1]["log"]["credit/reweighted"]


def test_a_deadline_beyond_the_patience_of_the_other_process_is_refused(ranks):
    """Who waits for a push must not give up before it."""
    for rank in ranks:
        assert rank["deadline"]["error"].startswith("ValueError: got push_deadline_s=61 with ddp_timeout=60")
