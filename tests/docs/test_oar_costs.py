"""What OAR.md says of the tokens that a policy reads is what engines count."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

from creditd.engines.gradient import gradient_tokens  # noqa: E402
from creditd.engines.perturbation import READ_AGAIN, perturbation_tokens  # noqa: E402
from creditd.engines.policy_protocol import ReasonedTokens  # noqa: E402

SECTION = (Path(__file__).parents[2] / "OAR.md").read_text().split("\n## What it costs\n")[1].split("\n## ")[0]
_ROW = re.compile(r"^\| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \|$", re.MULTILINE)
ROWS = [[float(cell) for cell in row] for row in _ROW.findall(SECTION)]
MOST_TOKENS = 4096


def item(prompt, reasoning, answer):
    """A completion of reasoning and an answer."""
    ids = np.arange(reasoning + answer)
    return ReasonedTokens(np.arange(prompt), ids, np.arange(reasoning), (reasoning, reasoning + answer))


@pytest.mark.parametrize("row", ROWS)
def test_shares_are_those_of_the_table(row):
    """Rounded to two digits; and within the bounds of the formula."""
    prompt, reasoning, answer = map(int, row[:3])
    n = prompt + reasoning + answer - 1
    least = n + sum(n - prompt - t for t in range(reasoning))
    for device, again in READ_AGAIN.items():
        found = perturbation_tokens(
            item(prompt, reasoning, answer), most_tokens=MOST_TOKENS, read_again=again, shares=True
        )
        assert least <= found <= least + again * reasoning
        if device == "cpu":
            assert round(found / ((1 + reasoning) * n), 2) == row[3]


def test_numbers_in_the_sentence_are_those_of_the_engine():
    """Of tokens that are read again, and of noisy passes."""
    assert len(ROWS) == 5
    assert re.findall(r"up to (\d+) more .* on a GPU up to (\d+):", SECTION) == [
        (str(READ_AGAIN["cpu"]), str(READ_AGAIN["cuda"]))
    ]
    assert gradient_tokens([item(6, 27, 5)], 3, shares=True) == 37 + 3 * (37 - 6)
