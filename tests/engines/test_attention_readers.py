import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:flex_attention called without")]

import torch  # noqa: E402
from transformers import (  # noqa: E402
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from creditd.engines.attention_readers import attention_reader  # noqa: E402
from creditd.engines.errors import ModelUnsuitableError  # noqa: E402
from creditd.engines.last_attention import LastAttention  # noqa: E402
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.reading import choose_reader  # noqa: E402
from creditd.engines.reward_scorers import Variants  # noqa: E402
from creditd.engines.trie_masks import BLOCK_ATTENTION, BlockMasks  # noqa: E402
from engines.architectures import BIDIRECTIONAL, CAUSAL, EXPERTS, SHAPE, VOCABULARY, WINDOWED  # noqa: E402
from engines.attentions import own_row, sharp, sharpened  # noqa: E402

AGREEMENT = 1e-6
POSITIONS = 120


def ignore():
    """Nobody waits for a sign of life."""


def readers(model, **spec):
    """What asks a model for rewards, and for its attention."""
    scorer = choose_reader(ModelSpec("rm", Path("rm"), **spec), model, longest=POSITIONS, pad_id=0).scorer
    return scorer, attention_reader(model, scorer, longest=POSITIONS)


def sequences_of(*lengths, seed=0):
    """Sequences with a common beginning, one of them twice and one the beginning of another."""
    draw = np.random.default_rng(seed)
    head = draw.integers(1, VOCABULARY, 5)
    found = [np.concatenate([head, draw.integers(1, VOCABULARY, length)]) for length in lengths]
    return [*found, found[0].copy(), found[-1][:-2], head]


def assert_rows(model, reader, sequences, position):
    """Rows of all sequences together are those of plain transformers one by one."""
    for row, sequence in zip(reader.rows([Variants(tuple(sequences))], ignore)[0], sequences, strict=True):
        assert row.shape == sequence.shape
        assert np.abs(row - own_row(model, sequence, position)).max() <= AGREEMENT
        assert row.sum() == pytest.approx(1.0, abs=AGREEMENT)


@pytest.mark.parametrize("chunk", [7, 256])
@pytest.mark.parametrize("name", [*CAUSAL, *EXPERTS])
def test_a_trie_has_the_rows_of_its_sequences(name, chunk):
    """Attention from the last token of each, in one pass or in many, shared beginnings or not."""
    model = sharp(name)
    _, reader = readers(model, chunk_tokens=chunk)
    sequences = sequences_of(3, 40, 11, 90)
    assert max(own_row(model, sequences[1], -1)) > 2 / len(sequences[1])
    assert_rows(model, reader, sequences, -1)


@pytest.mark.parametrize("tokens", [64, 4096])
@pytest.mark.parametrize(
    ("name", "position"), [*((name, -1) for name in WINDOWED), *((name, 0) for name in BIDIRECTIONAL)]
)
def test_batches_of_unequal_lengths_have_the_rows_of_their_sequences(name, position, tokens):
    """Padding is not seen, and nothing beyond a window; encoders are looked at from their first token."""
    model = sharp(name)
    _, reader = readers(model, batch_tokens=tokens)
    sequences = sequences_of(3, 40, 11, 90)
    assert_rows(model, reader, sequences, position)
    if name == "mistral with a window":
        assert (own_row(model, sequences[1], -1)[:-8] == 0).all()


@pytest.mark.parametrize(
    "model",
    [
        RobertaForSequenceClassification(RobertaConfig(**SHAPE)),
        DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=VOCABULARY, dim=32, hidden_dim=64, n_layers=2, n_heads=4, num_labels=1)
        ),
        ModernBertForSequenceClassification(
            ModernBertConfig(
                **SHAPE, classifier_pooling="cls", global_attn_every_n_layers=2, local_attention=8, cls_token_id=1,
                sep_token_id=2, bos_token_id=1, eos_token_id=2,
            )
        ),
    ],
    ids=["roberta", "distilbert", "modernbert"],
)  # fmt: skip
def test_other_encoders_are_looked_at_from_their_first_token(model):
    """Whatever their attention module is called, and whether the last layer sees all or its neighbours."""
    model = sharpened(model.eval())
    _, reader = readers(model)
    assert_rows(model, reader, sequences_of(3, 40, 11), 0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_attention_that_makes_its_own_table_is_taken_from_it(name):
    """A model that is registered with eager attention has the same rows."""
    model = sharp(name)
    model.set_attn_implementation("eager")
    _, reader = readers(model, chunk_tokens=16)
    assert_rows(model, reader, sequences_of(3, 40), 0 if name == "bert" else -1)


def test_masks_of_blocks_have_the_same_rows():
    """FlexAttention has no cells that could be read: the trie itself says who is seen."""
    model = sharp("qwen3")
    scorer, reader = readers(model, chunk_tokens=32)
    plain = reader.rows([Variants(tuple(sequences_of(3, 40, 11)))], ignore)[0]
    model.set_attn_implementation(BLOCK_ATTENTION)
    scorer.masks = BlockMasks.of(model, 32, POSITIONS)
    blocks = reader.rows([Variants(tuple(sequences_of(3, 40, 11)))], ignore)[0]
    assert model.config._attn_implementation == BLOCK_ATTENTION
    for row, expected in zip(blocks, plain, strict=True):
        assert np.abs(row - expected).max() <= AGREEMENT


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bert", "deberta"])
def test_scores_have_the_same_bits_before_and_after(name):
    """Looking leaves nothing behind: no hook, no other configuration, no other attention."""
    model = sharp(name)
    scorer, reader = readers(model)
    work = Variants(tuple(sequences_of(3, 40, 11)))
    last, implementation = reader._last, model.config._attn_implementation
    config, hooks = last.module.config if last.is_told else None, len(last.module._forward_hooks)
    before = scorer.score([work], ignore)[0]
    reader.rows([work], ignore)
    assert scorer.score([work], ignore)[0].tolist() == before.tolist()
    assert model.config._attn_implementation == implementation
    assert len(last.module._forward_hooks) == hooks
    assert not last.module._forward_pre_hooks
    assert config is None or last.module.config is config is model.base_model.config


def test_only_the_last_layer_is_looked_at(monkeypatch):
    """One look for each pass, at one row of one layer: no table of positions by positions is made."""
    model = sharp("llama", num_hidden_layers=3)
    _, reader = readers(model, chunk_tokens=16)
    made, original = [], torch.Tensor.softmax

    def softmax(scores, *args, **options):
        made.append(tuple(scores.shape))
        return original(scores, *args, **options)

    monkeypatch.setattr(torch.Tensor, "softmax", softmax)
    reader.rows([Variants(tuple(sequences_of(3, 40)))], ignore)
    assert sorted(made) == [(4, 5), (4, 8), (4, 43), (4, 45)]


def test_who_fails_while_looking_leaves_nothing_behind():
    """An error in a pass ends the looking as its end does."""
    model = sharp("llama")
    scorer, reader = readers(model)
    work = Variants(tuple(sequences_of(3)))

    def fails():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        reader.rows([work], fails)
    assert reader._last.module.config is model.base_model.config
    assert np.isfinite(scorer.score([work], ignore)[0]).all()


def test_a_pass_is_announced_before_it_is_made():
    """The thread says that it lives before each pass, so that work which nobody wants can end."""
    model = sharp("llama")
    _, reader = readers(model, chunk_tokens=16)
    beats = itertools.count()
    work = Variants(tuple(sequences_of(40, 30)))
    reader.rows([work], lambda: next(beats))
    assert next(beats) == -(-len(work.trie) // 16)


def test_a_head_that_reads_the_mean_of_all_positions_is_refused():
    """There is no one position whose attention it would be."""
    config = ModernBertConfig(
        **SHAPE, classifier_pooling="mean", cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
    )
    model = ModernBertForSequenceClassification(config).eval()
    with pytest.raises(ModelUnsuitableError, match="its head reads 5 of 5 positions"):
        readers(model)


def test_rows_that_are_not_those_of_transformers_are_found_out():
    """They are compared before any is served."""
    model = sharp("llama")
    scorer, _ = readers(model)

    def turned(_module, _inputs, said):
        if said.attentions:
            said.attentions = tuple(table.flip(-1) for table in said.attentions)
        return said

    model.base_model.register_forward_hook(turned)
    with pytest.raises(ModelUnsuitableError, match="its attention is not what is found of its last layer"):
        attention_reader(model, scorer, longest=POSITIONS)


def test_a_model_without_attention_is_refused():
    """A module that is called otherwise is not guessed at."""
    with pytest.raises(ModelUnsuitableError, match="does not say which part of it is its attention"):
        LastAttention.of(Plain())


class Plain(torch.nn.Linear):
    """A model that has none."""

    def __init__(self):
        super().__init__(2, 2)
        self.base_model = self
