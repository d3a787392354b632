import logging
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:flex_attention called without")]

import torch  # noqa: E402

from creditd.engines.errors import ModelUnsuitableError  # noqa: E402
from creditd.engines.loading import load_reward  # noqa: E402
from creditd.engines.memory import ForwardShape, batch_bytes, trie_bytes  # noqa: E402
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.reading import choose_reader, chunk_tokens  # noqa: E402
from creditd.engines.reward_scorers import Variants  # noqa: E402
from creditd.engines.trie_masks import BLOCK_ATTENTION, block_attention  # noqa: E402
from engines.architectures import BIDIRECTIONAL, CAUSAL, WINDOWED, made  # noqa: E402
from engines.saved import saved  # noqa: E402
from engines.shapes import Compilations, ignore  # noqa: E402


def spec(**changes):
    """A registration."""
    return ModelSpec("rm", Path("rm"), **{"batch_tokens": 256, **changes})


def chosen(model, **changes):
    """The reader of a model."""
    return choose_reader(spec(**changes), model, longest=128, pad_id=0)


@pytest.mark.parametrize(
    ("name", "attention", "reading"),
    [
        ("llama", None, "dense"),
        ("llama", "sdpa", "dense"),
        ("llama", "flex_attention", "blocks"),
        ("qwen3", "flex_attention", "blocks"),
        ("gpt2", "flex_attention", "dense"),
        ("gemma2", "flex_attention", "batches"),
        ("mistral with a window", "flex_attention", "batches"),
        ("bert", "flex_attention", "batches"),
        ("bert", None, "batches"),
    ],
)
def test_the_best_way_that_passes_its_check_is_taken(name, attention, reading):
    """Blocks where they are asked for, else dense masks, else batches; scores are the model's own in each."""
    model = made(name)
    work = Variants((np.arange(1, 40), np.arange(1, 30), np.arange(2, 9)))
    with torch.inference_mode():
        expected = [model(torch.from_numpy(row)[None]).logits[0, 0].item() for row in work.sequences]
    before = model.config._attn_implementation
    reader = chosen(model, attention=attention)
    assert reader.reading == reading
    assert reader.scorer.score([work], ignore)[0] == pytest.approx(expected, abs=1e-5)
    assert model.config._attn_implementation == (BLOCK_ATTENTION if reading == "blocks" else before)
    assert (reader.check is None) is (name in BIDIRECTIONAL)


def test_the_log_says_which_way_was_taken_and_why(caplog):
    """One line for each way that was tried, with what kept a model from it."""
    with caplog.at_level(logging.INFO, logger="creditd.engines"):
        chosen(made("gpt2"), attention="flex_attention")
        chosen(made("gemma2"))
    said = [record.getMessage() for record in caplog.records if record.name == "creditd.engines"]
    assert said[0] == "model rm does not read tries, masks: blocks: AttributeError"
    assert said[1] == "model rm reads tries, masks: dense"
    assert said[2].startswith("model rm does not read tries, masks: dense: an error of ")
    assert said[3] == "model rm reads batches of like length"


def test_both_shapes_of_blocks_are_run_before_a_model_is_ready():
    """After loading nothing new is asked of the attention: a first chunk and one with a path were run."""
    counted = Compilations()
    reader = chosen(made("qwen2"), attention="flex_attention")
    assert counted.shapes == {(256, 256), (256, 384)}
    graphs = counted.graphs
    draw = np.random.default_rng(0)
    for longest in (3, 40, 120):
        rows = tuple(draw.integers(1, 9, draw.integers(1, longest + 1)) for _ in range(30))
        reader.scorer.score([Variants(rows)], ignore)
    assert counted.shapes == {(256, 256), (256, 384)}
    assert counted.graphs == graphs <= 2


@pytest.mark.parametrize("name", [*CAUSAL, *WINDOWED, *BIDIRECTIONAL])
def test_a_model_that_needs_more_room_than_it_may_is_refused(tmp_path, name):
    """At boot, naming the model, what it needs, what it may, and what to lower."""
    saved(tmp_path / "rm", name)
    with pytest.raises(
        ModelUnsuitableError, match=r"^model rm: a forward pass needs up to .* MiB .* 0\.1 MiB .*batch_tok"
    ):
        load_reward(spec(max_forward_bytes=100_000), tmp_path)
    loaded = load_reward(spec(max_forward_bytes=1 << 30), tmp_path)
    shape = ForwardShape.of(loaded.model)
    if loaded.reading == "batches":
        assert loaded.forward_bytes == batch_bytes(shape, most_tokens=256, longest=256)
    else:
        assert loaded.forward_bytes == trie_bytes(shape, most_nodes=256, longest=256, blocks=False)


def test_chunks_are_small_on_a_processor_and_whole_batches_on_a_gpu():
    """Unless a registration says how large they are."""
    assert chunk_tokens(spec(batch_tokens=4096)) == 256
    assert chunk_tokens(spec(batch_tokens=100)) == 100
    assert chunk_tokens(spec(batch_tokens=4096, device="cuda:1")) == 4096
    assert chunk_tokens(spec(batch_tokens=4096, chunk_tokens=512)) == 512


def test_a_loaded_model_says_how_it_is_read(tmp_path):
    """By blocks, of a saved directory, with the attention that the registration names."""
    saved(tmp_path / "rm")
    loaded = load_reward(spec(attention="flex_attention"), tmp_path)
    assert (loaded.reading, loaded.reads_tries) == ("blocks", True)
    block_attention.shapes.clear()
    loaded.scorer.score([Variants((np.arange(1, 9),))], ignore)
    assert len(block_attention.shapes) == 1
