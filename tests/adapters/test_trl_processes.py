"""Two gloo processes whose local batches are half groups."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

from adapters.trainers import MARKS, recorded
from services import running_service

pytestmark = MARKS
HANG_S = 30.0
"""Far less than the half hour for which a process waits for another that has gone."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What both processes wrote down about runs of each kind."""
    directory = tmp_path_factory.mktemp("processes")
    script = Path(__file__).with_name("two_processes.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with running_service(script=script.with_name("model_service.py"), directory=directory) as url:
        command = [sys.executable, *launcher, str(script), str(directory), url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.fixture(scope="module")
def ranks(folder):
    """The outcomes of each process, by the name of the run."""
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_groups_that_span_two_processes_are_asked_about_once(folder, ranks):
    """One request per generation, and every row has its own credit."""
    batches = recorded(folder / "wire")
    assert [rank["sound"]["error"] for rank in ranks] == [None, None]
    assert len(batches) == 2
    for number, batch in enumerate(batches):
        rows = [row for rank in ranks for row in rank["sound"]["advantages"][number]]
        assert len(rows) == len(batch) == 4
        for row, values in zip(rows, batch, strict=True):
            padding = [0.0] * (len(row) - len(values))
            assert row == pytest.approx([*values, *padding], abs=1e-6)


def test_both_processes_raise_together(ranks):
    """Under `raise` a lost service ends both runs with the same error, and neither waits for the other."""
    errors = {rank["raise"]["error"] for rank in ranks}
    assert len(errors) == 1
    assert errors.pop().startswith(("TransportError", "DeadlineExceededError"))
    assert all(rank["raise"]["seconds"] < HANG_S for rank in ranks)


@pytest.mark.parametrize("policy", ["group_reward", "mask", "local"])
def test_both_processes_fall_back_together(policy, ranks):
    """Each policy does in both processes what it does in one, and both count it."""
    for rank in ranks:
        run = rank[policy]
        assert run["error"] is None
        assert run["request_ids"] == []
        counts = {name: run["log"][f"credit/{name}"] for name in ("errors", "local", "fallbacks")}
        local = float(policy == "local")
        assert counts == {"errors": 1.0, "local": local, "fallbacks": 1.0 - local}
        assert len(run["advantages"]) == 2
    first = [row for rank in ranks for row in rank[policy]["advantages"][0]]
    masks = [row for rank in ranks for row in rank[policy]["masks"][0]]
    if policy == "local":
        assert first == [row for rank in ranks for row in rank["sound"]["advantages"][0]]
    if policy == "mask":
        assert not any(value for row in first for value in row)
    if policy == "group_reward":
        values = [{value for value, kept in zip(*pair, strict=True) if kept} for pair in zip(first, masks, strict=True)]
        assert all(len(one) == 1 for one in values)
        assert any(max(one) != 0 for one in values)


def test_a_model_scores_groups_that_span_two_processes_in_one_request(folder, ranks):
    """Both train on what a function that says the same gives, and log its rewards; the model is asked once."""
    assert len(list((folder / "model").glob("*.json"))) == 2
    for rank in ranks:
        assert [rank[name]["error"] for name in ("model", "function")] == [None, None]
        for batch, expected in zip(rank["model"]["advantages"], rank["function"]["advantages"], strict=True):
            for row, values in zip(batch, expected, strict=True):
                assert row == pytest.approx(values, abs=1e-6)
        for name in ("reward", "rewards/candidates/mean", "credit/candidates"):
            assert rank["model"]["log"][name] == pytest.approx(rank["function"]["log"][name], abs=1e-6)


def test_both_processes_lose_a_model_together(ranks):
    """Both raise, or both mask."""
    errors = {rank["model, raise"]["error"] for rank in ranks}
    assert len(errors) == 1
    assert errors.pop().startswith(("TransportError", "DeadlineExceededError"))
    assert all(rank["model, raise"]["seconds"] < HANG_S for rank in ranks)
    for rank in ranks:
        assert rank["model, mask"]["log"]["credit/fallbacks"] == 1.0
        assert not any(value for batch in rank["model, mask"]["advantages"] for row in batch for value in row)


def test_spans_of_groups_that_span_two_processes_are_asked_about_once(folder, ranks):
    """Model or function, both train on the same rows of one answer; a function is called in one process alone."""
    batches = recorded(folder / "spans")
    assert len(batches) == 2
    for name in ("spans by model", "spans by function"):
        assert [rank[name]["error"] for rank in ranks] == [None, None]
        for number, batch in enumerate(batches):
            rows = [row for rank in ranks for row in rank[name]["advantages"][number]]
            assert len(rows) == len(batch) == 4
            for row, values in zip(rows, batch, strict=True):
                assert row == pytest.approx([*values, *[0.0] * (len(row) - len(values))], abs=1e-6)
        for entry in ("reward", "rewards/spans/mean", "credit/units"):
            assert ranks[0][name]["log"][entry] == pytest.approx(ranks[1]["spans by model"]["log"][entry], abs=1e-6)
    assert ranks[0]["spans by function"]["scored"] > 0
    assert ranks[1]["spans by function"]["scored"] == 0


def test_a_lost_model_leaves_neither_process_to_the_other_rewards(ranks):
    """Nobody knows v(P), so nothing is trained on, and what the other function gave is logged."""
    for rank in ranks:
        found = rank["spans, lost model"]
        assert found["error"] is None
        assert len(found["advantages"]) == 2
        assert not any(value for batch in found["advantages"] for row in batch for value in row)
        assert found["log"]["credit/fallbacks"] == 1.0
        assert found["log"]["reward"] is None
        assert found["log"]["rewards/length/mean"] == ranks[0]["spans, lost model"]["log"]["rewards/length/mean"] > 0


def test_both_processes_lose_the_credit_of_spans_together(ranks):
    """Both raise, or both do what the policy says; rewards of a function are known in both."""
    errors = {rank["spans, raise"]["error"] for rank in ranks}
    assert len(errors) == 1
    assert errors.pop().startswith(("TransportError", "DeadlineExceededError"))
    assert all(rank["spans, raise"]["seconds"] < HANG_S for rank in ranks)
    sound = [row for rank in ranks for row in rank["spans by function"]["advantages"][0]]
    for policy in ("group_reward", "mask", "local"):
        runs = [rank[f"spans, {policy}"] for rank in ranks]
        assert [run["error"] for run in runs] == [None, None]
        assert all(run["log"]["credit/errors"] == 1.0 for run in runs)
        rows = [row for run in runs for row in run["advantages"][0]]
        assert any(value for row in rows for value in row) == (policy != "mask")
        assert (rows == sound) == (policy == "local")
        assert runs[0]["log"]["reward"] == runs[1]["log"]["reward"]


def test_a_fault_of_the_configuration_keeps_its_traceback(ranks):
    """Both raise an error of one kind; where the fault was, the error knows where it came from."""
    assert {rank["schedule"]["error"] for rank in ranks} == {
        "RuntimeError: ZeroDivisionError: integer division or modulo by zero"
    }
    assert [rank["schedule"]["cause"] for rank in ranks] == ["ZeroDivisionError", "NoneType"]
    assert all(rank["schedule"]["seconds"] < HANG_S for rank in ranks)


def test_a_row_out_of_place_in_one_process_stops_both(ranks):
    """The process without the fault does not wait for an answer that never comes."""
    for rank in ranks:
        assert "Flipped returned other tokens in row 0" in rank["reordered"]["error"]
        assert rank["reordered"]["seconds"] < HANG_S


def test_a_deadline_beyond_the_patience_of_the_other_processes_is_refused(ranks):
    """Who waits for the answer must not give up before it."""
    for rank in ranks:
        assert rank["deadline"]["error"].startswith("ValueError: got deadline_s=61 with ddp_timeout=60")
