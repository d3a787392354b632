"""The engine on a GPU, from a directory that `save_pretrained` wrote to rewards."""

import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="tests on a GPU need torch and transformers")
pytestmark = pytest.mark.gpu

import torch  # noqa: E402
from transformers import AutoModelForSequenceClassification  # noqa: E402

from creditd.engines.errors import ModelUnsuitableError  # noqa: E402
from creditd.engines.loading import load_reward  # noqa: E402
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.protocol import VariantTexts  # noqa: E402
from creditd.engines.reward_engine import RewardEngine  # noqa: E402
from engines.architectures import VOCABULARY  # noqa: E402
from engines.saved import saved, tokenizer  # noqa: E402
from engines.shapes import Compilations, reward_model  # noqa: E402

WORDS = ["the quick", " brown fox", " jumps over", " the lazy", " dog 1 2 3", " 4 5 6"]
PROMPT = "a question and an answer: "
SUBSETS = np.array(list(itertools.product([False, True], repeat=len(WORDS))))


def completions():
    """All subsets of some words, in their order."""
    return ["".join(itertools.compress(WORDS, present)) for present in SUBSETS.tolist()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A directory with a reward model of 34 million parameters, and one that cannot be read by blocks."""
    folder = tmp_path_factory.mktemp("models")
    reward_model("34 M", vocab_size=VOCABULARY).save_pretrained(folder / "rm")
    tokenizer().save_pretrained(folder / "rm")
    saved(folder / "gpt2", "gpt2")
    saved(folder / "gemma2", "gemma2")
    saved(folder / "bert", "bert")
    return folder


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.05), ("float16", 0.01)])
def test_rewards_are_those_of_the_saved_model(root, dtype, bound):
    """Blocks are chosen by themselves; both shapes are compiled before the first request, and none after it."""
    original = AutoModelForSequenceClassification.from_pretrained(root / "rm", dtype=torch.float32).eval()
    counted = Compilations()
    engine = RewardEngine.load(ModelSpec("rm", Path("rm"), device="cuda", dtype=dtype, batch_tokens=1024), root)
    try:
        at_load = counted.graphs
        asked = engine.prepared([VariantTexts(PROMPT, tuple(WORDS), SUBSETS)])
        found = engine.submit(asked).result(timeout=120).rewards
        with torch.inference_mode():
            rows = [torch.from_numpy(engine._loaded.text.tokens(PROMPT, text))[None] for text in completions()]
            expected = np.array([original(row).logits[0, 0].item() for row in rows])
        assert engine.status().reads_tries
        assert (np.abs(found - expected) <= bound * np.maximum(1.0, np.abs(expected))).all()
        assert len(counted.shapes) == 2
        assert counted.graphs == at_load <= 2
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("name", "attention", "reading"),
    [
        ("rm", None, "blocks"),
        ("rm", "flex_attention", "blocks"),
        ("rm", "sdpa", "dense"),
        ("gpt2", None, "dense"),
        ("gemma2", None, "batches"),
        ("bert", None, "batches"),
    ],
)
def test_the_best_way_that_passes_its_check_is_taken(root, name, attention, reading):
    """Blocks by themselves on a GPU; whatever cannot be read so is read as well as it can be."""
    loaded = load_reward(ModelSpec(name, Path(name), device="cuda", attention=attention, batch_tokens=512), root)
    assert loaded.reading == reading
    assert loaded.forward_bytes > 0


def test_a_model_that_does_not_fit_is_refused(root):
    """Sequences of a billion tokens are refused at boot, by what is free on the GPU."""
    folder = root / "long"
    reward_model("34 M", vocab_size=VOCABULARY, num_hidden_layers=1).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace('"max_position_embeddings": 2048', '"max_position_embeddings": 1000000000')
    )
    with pytest.raises(
        ModelUnsuitableError, match=r"^model rm: .* cuda:0 has free: lower chunk_tokens, batch_tokens or max"
    ):
        load_reward(ModelSpec("rm", Path("long"), device="cuda"), root)
