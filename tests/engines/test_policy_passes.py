import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402

from creditd.engines.policy_passes import Rows, beginning, filled  # noqa: E402
from engines.policies import SHARING, passes_of, policy  # noqa: E402


@pytest.mark.parametrize("name", SHARING)
def test_a_cache_is_gone_on_from_as_often_as_one_likes(name):
    """Rows that follow leave nothing in it, and several go on from one row."""
    model = policy(name)
    random = np.random.default_rng(0)
    rows = random.integers(3, 250, (3, 20))
    rows[:, :12] = rows[0, :12]
    reads = (np.array([12, 19]),) * 3
    passes = passes_of(model)
    with torch.no_grad():
        whole = torch.stack(passes_of(model, shares=False).clean(Rows(rows, reads))[0])
        _, cache = passes.clean(Rows(rows[:1], reads[:1]))
        later = Rows(rows[:, 12:], tuple(one - 12 for one in reads), 12)
        first, second = (torch.stack(passes.after(later, cache)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.allclose(first, whole, atol=1e-4 * float(whole.abs().max()))
    assert cache.get_seq_length() == 20
    assert beginning(cache, 12).get_seq_length() == 12


def test_rows_behind_a_beginning_need_its_cache():
    """A pass that lacks it is refused, instead of reading from the middle on."""
    rows = Rows(np.full((1, 4), 5), (np.array([1]),), 3)
    with pytest.raises(ValueError, match="without a cache"):
        passes_of(policy()).after(rows, None)


def test_each_row_is_read_where_it_asks():
    """In its own order of columns, with filled ends that change nothing."""
    model = policy()
    sequences = [np.arange(3, 20), np.arange(40, 47)]
    rows = filled(sequences, 9)
    assert rows.shape == (2, 17)
    assert (rows[1, 7:] == 9).all()
    reads = (np.array([3, 16]), np.array([6]))
    with torch.no_grad():
        found, cache = passes_of(model, shares=False).clean(Rows(rows, reads))
        alone = [
            passes_of(model, shares=False).clean(Rows(one[None], (columns,)))[0][0]
            for one, columns in zip(sequences, reads, strict=True)
        ]
    assert cache is None
    for one, by_itself in zip(found, alone, strict=True):
        assert torch.allclose(one, by_itself, atol=1e-5 * float(by_itself.abs().max()))


def test_noise_is_added_once_and_leads_back():
    """To embeddings of this pass alone; the next one has none."""
    model, passes = policy(), passes_of(policy())
    rows = Rows(np.arange(3, 13)[None], (np.array([9]),))
    noise = torch.zeros((1, 10, 32))
    noise[0, 2] = 0.5
    made = passes.noisy(rows, None, lambda width: noise[..., :width])
    clean = passes.clean(rows)[0][0]
    assert torch.equal(made.leaf - made.clean, noise) or torch.allclose(made.leaf - made.clean, noise, atol=1e-6)
    assert not torch.allclose(made.states[0], clean)
    (gradient,) = torch.autograd.grad(made.states[0].sum(), made.leaf)
    assert gradient.shape == (1, 10, 32)
    assert gradient.abs().sum() > 0
    assert torch.equal(passes.clean(rows)[0][0], clean)
    assert model.get_input_embeddings()._forward_hooks == {}
