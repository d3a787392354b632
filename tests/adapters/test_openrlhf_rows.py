"""Rows of OpenRLHF's experiences: what is not as OpenRLHF has it is refused, and not read as something else."""

import math

import pytest

pytest.importorskip("openrlhf", reason="the lane `trainer` installs OpenRLHF into an environment of its own")

from conventions.groups import OF_A_LIBRARY

pytestmark = OF_A_LIBRARY

from adapters import openrlhf_world as world  # noqa: E402
from adapters import tiny  # noqa: E402
from adapters.openrlhf_world import samples  # noqa: E402
from creditd.adapters.openrlhf_rows import columns_of, rows_of_batch  # noqa: E402


def broken(name):
    """One experience of two rows in which something is not as OpenRLHF has it."""
    tokenizer = tiny.tokenizer()
    made = world.experiences.Experience.concat_experiences(samples(tokenizer)[:2], tokenizer.pad_token_id)
    made.index = [0, 1]
    if name == "padding":
        made.attention_mask = made.attention_mask.flip(1)
    elif name == "mask":
        made.action_mask = made.action_mask[:, 1:]
    elif name == "labels":
        made.labels = made.labels[:1]
    else:
        made.index = {"twice": [0, 0], "missing": [0, 2]}[name]
    return [made]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("padding", "expected it on the right"),
        ("mask", "got action_mask of shape"),
        ("labels", "got 1 labels of 2 completions"),
        ("twice", "got completion 0 twice"),
        ("missing", "expected 0 to 1, each once"),
    ],
)
def test_rows_that_are_not_as_they_were_are_refused(name, words):
    """Nothing is trained on the numbers of other tokens."""
    with pytest.raises(ValueError, match=words):
        rows_of_batch(broken(name))


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5, math.nan]])
def test_a_token_without_a_number_is_refused(values):
    """Too few, or one that is none."""
    batch = broken("missing")
    batch[0].index = [0, 1]
    rows = rows_of_batch(batch)
    with pytest.raises(ValueError, match="expected 4 finite ones, one per token"):
        columns_of(batch, rows, [values, [0.0] * 6])
