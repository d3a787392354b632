"""Redis lost in a training, short: real TRL, a real service with a real model, a real redis-server."""

import json
import re
import subprocess
import sys

import pytest

from demo.conftest import DEMO

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")
pytestmark = [pytest.mark.trainer, pytest.mark.redis, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LIMIT_S = 600.0
STEPS, LOST_AFTER, BACK_AFTER = 4, 1, 3
QUICK = {"steps": STEPS, "lost-after": LOST_AFTER, "back-after": BACK_AFTER, "evaluate-every": 2, "lessons": 40}


@pytest.fixture(scope="module")
def outage(tmp_path_factory):
    """What the script prints, and the file that it writes."""
    out = tmp_path_factory.mktemp("outage") / "redis_outage.json"
    options = [word for name, value in QUICK.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(DEMO / "redis_outage.py"), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(out.read_text(encoding="utf-8"))


def test_the_policy_does_not_know_of_redis(outage):
    """Six trainings end in the same weights, the same evaluations and the same log."""
    runs = outage[1]["runs"]
    assert list(runs) == ["no cache", "empty Redis", "full Redis", "half-full Redis", "frozen", "killed"]
    for part in ("weights", "log", "curve"):
        assert len({json.dumps(run[part]) for run in runs.values()}) == 1, part
    assert {"loss", "grad_norm", "reward", "rewards/rm/mean", "credit/zero_share"} <= set(outage[1]["compared_entries"])
    assert [point["step"] for point in runs["killed"]["curve"]] == [0, 2, 4]


def test_the_model_is_asked_for_what_redis_does_not_remember(outage):
    """Always without a cache, never with a full one, for a part of each step with a half, and again without Redis."""
    asked = {name: run["evaluations_of_steps"] for name, run in outage[1]["runs"].items()}
    assert all(len(steps) == STEPS for steps in asked.values())
    assert min(asked["no cache"]) > 0
    assert not any(asked["full Redis"])
    assert all(0 < half < whole for half, whole in zip(asked["half-full Redis"], asked["no cache"], strict=True))
    for name in ("frozen", "killed"):
        assert not any(asked[name][:LOST_AFTER])
        assert asked[name][LOST_AFTER:BACK_AFTER] == asked["no cache"][LOST_AFTER:BACK_AFTER]
        counters = outage[1]["runs"][name]["counters"]
        assert sum(value for key, value in counters.items() if key.startswith("creditd_cache_errors_total")) > 0


def test_what_was_counted_is_printed(outage):
    """The fit of the model, both tables, and the same counters as in the file."""
    text, results = outage
    assert re.search(r"reward model: correlation 0\.\d+ with the expected rewards", text)
    assert "The same bits in all 6 trainings" in text
    assert "counters that moved" in text
    assert "evaluations of step" in text
    assert results["reward_model"]["correlation"] > 0.3
    assert results["settings"]["lost_after"] == LOST_AFTER


def test_the_reward_model_knows_what_no_gift_is():
    """What two words are worth is the table's, and nothing where they are no gift."""
    import numpy as np

    import task
    from reward_model import expected_rewards

    tables = task.Tables()
    rewards = expected_rewards(tables)
    red, kite, city = (task.VOCABULARY.index(word) for word in ("red", "kite", "city"))
    assert rewards[5, red, kite] == pytest.approx(tables.types[5] @ tables.by_type(5, ["red kite"])[:, 0])
    assert not rewards[:, kite, red].any()
    assert not rewards[:, city].any()
    assert np.count_nonzero(rewards) == len(task.PROMPTS) * len(task.ADJECTIVES) * len(task.NOUNS)


@pytest.mark.parametrize("wrong", [{"lost-after": 0}, {"back-after": 1}, {"steps": 3}])
def test_an_outage_lies_within_the_training(wrong):
    """It begins after a step, ends after a later one, and something comes after it."""
    options = [word for name, value in (QUICK | wrong).items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(DEMO / "redis_outage.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 2
    assert "expected 1 ≤ --lost-after < --back-after < --steps" in done.stderr
