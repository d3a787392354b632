"""The contract of all adapters, held by TRL's own trainer."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

from adapters import contract
from adapters.contract import PROMPTS, AdapterContract
from adapters.tiny import VOCABULARY
from adapters.trainers import MARKS
from adapters.two_of_contract import trained

pytestmark = MARKS


def test_the_words_are_those_of_the_tiny_model():
    """The contract reads without torch."""
    assert contract.WORDS == VOCABULARY


LIMIT_S = 300
"""Of two processes that import torch and TRL and take two steps: many times what they need."""


class TestTRL(AdapterContract):
    """`CreditGRPOTrainer` in a step of a tiny model, whose completions are written beforehand."""

    def advantages(self, tmp_path, rollouts, config):
        """What its loss takes, without padding."""
        (step,) = trained(tmp_path, rollouts, config, [range(len(PROMPTS))])
        return step

    def split(self, tmp_path, rollouts, config):
        """Two processes with half of each group, a group in each step: as TRL deals rows out where a rank has fewer."""
        (tmp_path / "contract.pickle").write_bytes(pickle.dumps((rollouts, config)))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        done = subprocess.run(
            [*launcher, str(Path(__file__).with_name("two_of_contract.py")), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
        steps = zip(*ranks, strict=True)
        return [row for halves in steps for half in halves for row in half]
