import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit.student_t import t_quantile

ACCURACY = 1e-10
"""Relative; the reference itself is good to about 2e-11."""

REFERENCE = [
    (0.75, 1, 1.0000000000000002),
    (0.975, 1, 12.706204736174694),
    (0.9999, 1, 3183.098757118502),
    (0.75, 2, 0.8164965809277261),
    (0.975, 2, 4.302652729749462),
    (0.9999, 2, 70.70007107496818),
    (0.75, 3, 0.7648923284043444),
    (0.975, 3, 3.1824463052837078),
    (0.9999, 3, 22.203742273205),
    (0.75, 5, 0.7266868438004226),
    (0.975, 5, 2.5705818356363146),
    (0.9999, 5, 9.677566300882814),
    (0.75, 7, 0.7111417780817866),
    (0.975, 7, 2.364624251592784),
    (0.9999, 7, 7.063432828157639),
    (0.75, 10, 0.6998120613124317),
    (0.975, 10, 2.228138851986274),
    (0.9999, 10, 5.693820101457592),
    (0.75, 28, 0.683352842988506),
    (0.975, 28, 2.0484071417952454),
    (0.9999, 28, 4.275397855343388),
    (0.75, 100, 0.6769510430114717),
    (0.975, 100, 1.9839715185235518),
    (0.9999, 100, 3.861599790950091),
    (0.75, 255, 0.6754530700752408),
    (0.975, 255, 1.9693105698498752),
    (0.9999, 255, 3.7738024337718596),
    (0.75, 1000, 0.6747351646070093),
    (0.975, 1000, 1.9623390808264083),
    (0.9999, 1000, 3.7328516045753966),
    (0.75, 1000000, 0.6744899955310875),
    (0.975, 1000000, 1.959966356814107),
    (0.9999, 1000000, 3.719030274762571),
    (0.75, 1.5, 0.8725946625415716),
    (0.975, 1.5, 6.016663104427929),
    (0.9999, 1.5, 242.26409884652412),
    (0.501, 1, 0.003141602989056244),
    (0.999999999, 1, 318309895.1862093),
    (0.501, 4, 0.002666670617245677),
    (0.999999999, 4, 234.02761206090787),
]
"""Probability, degrees of freedom and quantile: scipy 1.17.1, `scipy.stats.t.ppf`."""


@pytest.mark.parametrize(("probability", "degrees_of_freedom", "expected"), REFERENCE)
def test_quantiles_equal_the_table(probability, degrees_of_freedom, expected):
    """Quantiles agree with an independent implementation, from heavy tails to the normal distribution."""
    assert t_quantile(probability, degrees_of_freedom) == pytest.approx(expected, rel=ACCURACY)


@given(st.floats(0.5, 0.9999), st.floats(1, 1e5), st.floats(1.001, 10))
def test_quantiles_fall_as_degrees_of_freedom_grow(probability, degrees_of_freedom, factor):
    """A larger sample has a smaller quantile, and 0.5 has none."""
    small, large = degrees_of_freedom, degrees_of_freedom * factor
    assert t_quantile(probability, large) <= t_quantile(probability, small) * (1 + 1e-12)
    assert t_quantile(0.5, small) == 0.0


@given(st.floats(0.5, 0.9999))
def test_one_and_two_degrees_of_freedom_have_closed_forms(probability):
    """ν = 1 is the tangent of the angle, ν = 2 has its closed form."""
    assert t_quantile(probability, 1.0) == pytest.approx(math.tan(math.pi * (probability - 0.5)), rel=1e-9, abs=1e-15)
    a = 2.0 * probability - 1.0
    assert t_quantile(probability, 2.0) == pytest.approx(a * math.sqrt(2.0 / (1.0 - a * a)), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("probability", "degrees_of_freedom"), [(0.4, 3.0), (1.0, 3.0), (0.9, 0.5)])
def test_what_has_no_quantile_is_refused(probability, degrees_of_freedom):
    """A probability outside [0.5, 1) or less than one degree of freedom is an error."""
    with pytest.raises(ValueError, match="got"):
        t_quantile(probability, degrees_of_freedom)
