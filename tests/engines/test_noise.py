import numpy as np
import pytest

from creditd.engines.noise import normal_noise


def test_numbers_are_a_function_of_where_they_stand():
    """More positions add numbers behind those that there were; the same is asked twice with the same answer."""
    few, many = normal_noise(7, 1, 5, 9), normal_noise(7, 1, 40, 9)
    assert few.shape == (5, 9)
    assert few.dtype == np.float32
    assert np.array_equal(few, many[:5])
    assert np.array_equal(many, normal_noise(7, 1, 40, 9))
    assert normal_noise(7, 1, 0, 9).shape == (0, 9)


def test_seeds_and_draws_are_independent():
    """Also large seeds, and a draw that has the number of another's seed."""
    kinds = [normal_noise(seed, draw, 50, 40).ravel() for seed, draw in ((0, 0), (0, 1), (1, 0), (2**64 - 1, 0))]
    together = np.corrcoef(kinds)
    assert np.abs(together - np.eye(4)).max() < 0.1


def test_numbers_are_standard_normal():
    """Moments of two hundred thousand of them, and how many are beyond one and two."""
    found = normal_noise(3, 0, 500, 401).astype(np.float64).ravel()
    assert abs(found.mean()) < 0.01
    assert abs(found.std() - 1.0) < 0.01
    assert abs((found**3).mean()) < 0.03
    assert abs((found**4).mean() - 3.0) < 0.1
    assert abs((np.abs(found) > 1).mean() - 0.3173) < 0.005
    assert abs((np.abs(found) > 2).mean() - 0.0455) < 0.003


def test_the_first_numbers_are_those_of_philox_and_of_box_and_muller():
    """Computed here from the generator's raw numbers, so that a change of either is noticed."""
    raw = np.random.Philox(key=np.array([5, 2], dtype=np.uint64)).random_raw(4)
    first, angle = ((int(one) >> 11) + 0.5 for one in raw[:2])
    radius = np.sqrt(-2 * np.log(first / 2**53))
    expected = radius * np.array([np.cos(2 * np.pi * angle / 2**53), np.sin(2 * np.pi * angle / 2**53)])
    assert normal_noise(5, 2, 1, 3)[0, :2] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_has_64_bits(seed):
    """What does not fit is refused."""
    with pytest.raises(ValueError, match="expected 0 ≤ seed"):
        normal_noise(seed, 0, 1, 1)
