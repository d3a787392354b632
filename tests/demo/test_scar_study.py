import numpy as np
import pytest

import scar_study as study
import scar_task as task
from scar_plans import KINDS


def test_auroc_counts_pairs():
    """Two causes against two others: 3 of 4 pairs in order; a tie counts one half, and rounding makes none."""
    labels = np.array([True, False, True, False])
    assert study.auroc(np.array([3.0, 2.0, 1.0, 0.0]), labels) == 0.75
    assert study.auroc(np.array([1.0, 1.0, 1.0, 1.0 + 1e-15]), labels) == 0.5
    assert study.auroc(np.array([0.0, 2.0, 1.0, 3.0]), labels) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_texts_have_causes_and_others(kind):
    """The same texts every time; their units are the remarks, and the offsets are those of the words."""
    texts = study.texts(kind, 20)
    assert study.texts(kind, 20).notes == texts.notes
    for note, offsets, units, truth in zip(texts.notes, texts.offsets, texts.units, texts.truths, strict=True):
        assert 0 < truth.causes.sum() < len(units)
        assert [note[start:stop].strip() for start, stop in offsets] == note.split()
        assert " ".join(units) == note


def test_the_planted_truth_itself_is_found():
    """Planted Shapley values as credit: correlation 1, nothing on others; and credit that is the same for all: 0.5."""
    texts = study.texts("start", 40)
    right = study.measures(texts, [truth.shapley for truth in texts.truths])
    assert right["correlation"] == pytest.approx(1.0)
    assert right["decoys"] == right["others"] == 0.0
    assert right["auroc"]["mean"] > 0.95  # below 1: praise that is spoilt is a cause, and its Shapley value can be 0
    flat = study.measures(texts, [np.full(len(units), 0.25) for units in texts.units])
    assert flat["auroc"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "texts": 40}
    assert flat["correlation"] is None


def test_credits_that_do_not_fit_the_units_are_refused():
    """A service that cut a text otherwise would be judged on the wrong units."""
    texts = study.texts("start", 2)
    with pytest.raises(ValueError, match=f"text 1: got 3 credits; expected one for each of its {task.REMARKS} units"):
        study.measures(texts, [np.zeros(task.REMARKS), np.zeros(3)])
