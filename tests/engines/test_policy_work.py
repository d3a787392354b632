from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

from creditd.engines.gradient import Gradients  # noqa: E402
from creditd.engines.policy_protocol import SensitivityOptions  # noqa: E402
from creditd.engines.policy_work import Distinct, PolicyScorer, PolicyWork, item_batches, sliced  # noqa: E402
from engines.policies import item_of  # noqa: E402

PERTURBED = SensitivityOptions("perturbation", perturbation_id=0)
BY_GRADIENT = SensitivityOptions("gradient")
SPREADS = (np.nan, 0.5)


class Noted:
    """A policy that says what it was asked: sensitivities are the measured positions."""

    def __init__(self):
        self.batched = []

    def n_tokens(self, items, options):
        """The tokens behind each measured one, or two rows for each item."""
        if options.method == "gradient":
            return sum(2 * (len(one.prompt_ids) + one.answer[1]) for one in items)
        return sum(int((one.answer[1] - one.positions).sum()) for one in items)

    def perturbed(self, item, _options, beat):
        """Positions."""
        beat()
        return item.positions.astype(np.float64)

    def gradients(self, batches, options, beat):
        """Positions, and no spread for those with an even number of them."""
        beat()
        self.batched += [(len(batch), options.seed) for batch in batches]
        return [
            [Gradients(one.positions.astype(np.float64), 0.5 if len(one.positions) % 2 else None) for one in batch]
            for batch in batches
        ]

    def batches(self, items):
        """Three at a time."""
        places = list(range(len(items)))
        return iter([places[start : start + 3] for start in range(0, len(places), 3)])


def test_copies_are_found_by_all_that_is_read_or_measured():
    """Not by what comes after the answer; the last answer token counts, whose likelihood is looked at."""
    item = item_of()
    after, last, earlier = item_of(), item_of(), item_of(measured=range(29))
    after.completion_ids[-1] = 5
    last.completion_ids[item.answer[1] - 1] = 5
    shifted = replace(item, prompt_ids=np.append(item.prompt_ids, item.completion_ids[0]))
    found = Distinct.of([item, after, last, earlier, item, shifted])
    assert found.places == (0, 0, 1, 2, 0, 3)
    assert len(found.items) == 4


@pytest.mark.parametrize("options", [PERTURBED, BY_GRADIENT])
def test_slices_are_the_work_in_order(options):
    """No slice is fuller than it may be but for one item; by perturbation items are cut, into parts of like cost."""
    measurer = Noted()
    work = PolicyWork(tuple(item_of(seed, reasoning=10 + 20 * seed) for seed in range(4)), options)
    most = 700 if options.method == "perturbation" else 200
    slices = sliced(work, measurer, most)
    assert len(slices) > 1
    positions = [one.positions for part in slices for one in part.items]
    assert np.array_equal(np.concatenate(positions), np.concatenate([one.positions for one in work.items]))
    for part in slices:
        assert measurer.n_tokens(part.items, options) <= most or len(part.items) == 1
        assert PolicyScorer(measurer).n_tokens(part) == part.n_tokens == measurer.n_tokens(part.items, options)
    if options.method == "perturbation":
        assert max(measurer.n_tokens(part.items, options) for part in slices) <= 1.2 * most
        assert len(positions) > 4
    else:
        assert len(positions) == 4
    assert sliced(work, measurer, 10**9) == [work]
    checked = []
    sliced(work, measurer, most, lambda: checked.append(1))
    assert len(checked) == 4


def test_works_share_batches_where_they_are_measured_alike():
    """Those with equal options; not those that are alone, and copies across works are measured once."""
    items = [item_of(seed, measured=range(3 + seed)) for seed in range(5)]
    works = [
        PolicyWork((items[0], items[1]), BY_GRADIENT),
        PolicyWork((items[2],), replace(BY_GRADIENT, seed=1)),
        PolicyWork((items[1], items[3], items[4]), BY_GRADIENT),
        PolicyWork((items[2], items[3]), BY_GRADIENT, alone=True),
        PolicyWork((items[4],), PERTURBED),
    ]
    measurer = Noted()
    found = PolicyScorer(measurer).score(works, lambda: None)
    assert sorted(measurer.batched) == [(1, 0), (1, 0), (1, 0), (1, 1), (3, 0)]
    for work, values in zip(works, found, strict=True):
        expected = [
            [*one.positions, *([] if work.options.method == "perturbation" else [SPREADS[len(one.positions) % 2]])]
            for one in work.items
        ]
        assert np.array_equal(values, np.concatenate(expected), equal_nan=True)
        assert [len(one) for one in expected] == list(work.lengths)


def test_batches_have_every_item_once_within_their_tokens():
    """Filling included; those on either side of a turn apart."""
    items = [item_of(seed, reasoning=5 + 11 * (seed % 7)) for seed in range(20)]
    lengths = [len(one.prompt_ids) + one.answer[1] - 1 for one in items]
    for turn in (None, 60):
        batches = list(item_batches(items, 200, turn))
        assert sorted(place for batch in batches for place in batch) == list(range(20))
        for batch in batches:
            longest, shortest = max(lengths[one] for one in batch), min(lengths[one] for one in batch)
            assert longest * len(batch) <= 200 or len(batch) == 1
            assert turn is None or not shortest <= turn < longest
