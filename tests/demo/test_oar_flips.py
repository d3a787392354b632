import math

import numpy as np
import pytest

import oar_flips
import oar_task as task
from demo.oar_fabricated import fidelity
from oar_findings import row_of
from oar_plans import FLIPS, OAR_MEASURES, RIVALS


def test_the_top_tenth_is_rounded_up_and_ties_go_to_the_earlier():
    """Three of 27, one of 10."""
    scores = np.zeros(27)
    scores[20] = 1.0
    assert oar_flips.top_places(scores).tolist() == [20, 0, 1]
    assert oar_flips.top_places(np.arange(10.0)).tolist() == [9]


def test_ranks_share_ties():
    """The mean of the places that they take."""
    assert oar_flips.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_rank_correlation():
    """Of the order alone; one without an order has none. The middle value is by hand: 1 − 6·2/(4·15)."""
    one = np.array([1.0, 2.0, 3.0, 4.0])
    assert oar_flips.rank_correlation(one, np.exp(one)) == pytest.approx(1.0)
    assert oar_flips.rank_correlation(one, -one) == pytest.approx(-1.0)
    assert oar_flips.rank_correlation(one, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    assert math.isnan(oar_flips.rank_correlation(one, np.ones(4)))


def test_intervals_leave_out_what_is_unknown():
    """Mean ± 1.96·s/√n over the completions that have a number."""
    found = oar_flips.over_texts(np.array([0.0, 1.0, np.nan]))
    assert found["texts"] == 2
    assert found["mean"] == 0.5
    assert oar_flips.over_texts(np.array([1.0, np.nan]))["mean"] is None
    assert found["high"] - found["mean"] == pytest.approx(1.96 * math.sqrt(0.5) / math.sqrt(2))


def test_intervals_end_where_values_do():
    """A share is between 0 and 1, a rank correlation between -1 and 1."""
    wide = {"mean": 0.9, "low": -1.5, "high": 1.2, "texts": 3}
    assert oar_flips.within(wide, 0.0) == {"mean": 0.9, "low": 0.0, "high": 1.0, "texts": 3}
    assert oar_flips.within(wide, -1.0)["low"] == -1.0
    unknown = oar_flips.over_texts(np.array([1.0]))
    assert oar_flips.within(unknown, 0.0) is unknown


def test_random_tokens_flip_as_all_do():
    """And chosen ones as the chosen do."""
    flips = np.zeros((2, 10))
    flips[:, 3] = (1.0, 0.5)
    scores = np.zeros((2, 10))
    scores[:, 3] = 1.0
    found = oar_flips.rates_of_top({"x": scores}, flips)
    assert found["random"].tolist() == [0.1, 0.05]
    assert found["x"].tolist() == [1.0, 0.5]


def test_the_summary_knows_who_found_the_tokens():
    """Sensitivity did, in every pair; all kinds of tokens are counted."""
    found = fidelity()
    assert len(found["differences"]) == len(FLIPS) * len(OAR_MEASURES) * len(RIVALS)
    assert {row["verdict"] for row in found["differences"]} == {"higher"}
    random = row_of(found["rates"], flips="kept", measure="random")["mean"]
    assert random == pytest.approx((6 * 0.9 + 21 * 0.1) / 27 + 0.01)
    assert row_of(found["rates"], flips="kept", measure="gradient")["mean"] == pytest.approx(0.91)
    assert {row["kind"]: row["tokens"] for row in found["kinds"]} == {"result": 6, "other digit": 9, "sign": 12}
    assert row_of(found["kinds"], kind="result")["weights"]["gradient"] == pytest.approx(1.5)
    assert row_of(found["agreement"], one="gradient_again", other="gradient")["mean"] == pytest.approx(1.0)
    assert sum(row["tokens"] for row in found["kinds"]) == task.REASONING


def test_nothing_is_higher_where_all_tokens_flip_alike():
    """Differences are then exactly 0."""
    assert {row["verdict"] for row in fidelity(0.1)["differences"]} == {"no difference"}
