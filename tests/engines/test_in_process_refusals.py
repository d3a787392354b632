import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

from creditd.engines.in_process import measure_sensitivities  # noqa: E402
from creditd.engines.policy_protocol import SensitivityOptions  # noqa: E402
from engines.policies import item_of, policy, tokens_of  # noqa: E402

PERTURBED = SensitivityOptions("perturbation", perturbation_id=0)
BY_GRADIENT = SensitivityOptions("gradient")
PATIENCE_S = 60.0


def with_token(item, token):
    """An item whose first token of the reasoning is another."""
    return replace(item, completion_ids=np.append([token], item.completion_ids[1:]))


def wrong_items(model):
    """Items and what is said of each."""
    item, vocabulary, longest = item_of(), model.config.vocab_size, model.config.max_position_embeddings
    nothing = np.empty(0, dtype=np.int64)
    return [
        (with_token(item, vocabulary), f"got token {vocabulary}; expected one below {vocabulary}"),
        (with_token(item, -1), f"got token -1; expected one below {vocabulary}"),
        (item_of(reasoning=longest), f"before the last one of the answer; expected at most {longest}"),
        (replace(item, answer=(30, 90)), "expected tokens of the completion"),
        (replace(item, prompt_ids=nothing, positions=nothing, answer=(0, 2)), "with one before it"),
        (replace(item, positions=np.array([4, 3])), "expected measured positions that ascend"),
    ]


class Pair:
    """Two processes that agree on a number, here threads; one that is alone is let go and fails."""

    def __init__(self):
        self._numbers = []
        self._both = threading.Barrier(2)

    def agree(self, number):
        """The larger one."""
        self._numbers.append(number)
        self._both.wait(PATIENCE_S)
        return max(self._numbers)


@pytest.mark.parametrize("options", [PERTURBED, BY_GRADIENT])
def test_all_processes_refuse_what_one_of_them_cannot_measure(options):
    """None is left in a pass of all: the one that got it says what is wrong, the other that another did."""
    models = policy(), policy()
    for wrong, why in wrong_items(models[0]):
        pair = Pair()
        with ThreadPoolExecutor(2) as processes, tokens_of(models[0]) as first, tokens_of(models[1]) as second:
            asked = [
                processes.submit(measure_sensitivities, model, items, options, agree=pair.agree)
                for model, items in zip(models, ([item_of(), wrong], [item_of()]), strict=True)
            ]
            with pytest.raises(ValueError, match="item 1: ") as found:
                asked[0].result(PATIENCE_S)
            with pytest.raises(ValueError, match="another process got items that cannot be measured"):
                asked[1].result(PATIENCE_S)
        assert why in str(found.value)
        assert first == second == []


def test_the_token_to_perturb_with_is_one_of_the_vocabulary():
    """It is named, and the model knows it."""
    model = policy()
    for token, why in ((None, "got no perturbation_id"), (model.config.vocab_size, "expected a token below")):
        with pytest.raises(ValueError, match=why):
            measure_sensitivities(model, [item_of()], replace(PERTURBED, perturbation_id=token))


def test_rows_as_long_as_the_model_has_positions_are_measured():
    """What is refused is one token longer."""
    model = policy("gpt2")
    fitting = item_of(prompt=10, reasoning=model.config.n_positions - 11, conclusion=0, answer=2)
    short = replace(fitting, positions=fitting.positions[-3:])
    assert np.isfinite(measure_sensitivities(model, [short], PERTURBED)[0].sensitivities).all()
    longer = replace(short, prompt_ids=np.append(short.prompt_ids, 3))
    with pytest.raises(ValueError, match="expected at most"):
        measure_sensitivities(model, [longer], PERTURBED)
