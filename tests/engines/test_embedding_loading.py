import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import T5Config, T5Model  # noqa: E402

from creditd.engines.embedding_loading import load_embedding  # noqa: E402
from creditd.engines.errors import ModelUnsuitableError  # noqa: E402
from creditd.engines.loading import load_reward  # noqa: E402
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.reward_scorers import Variants  # noqa: E402
from engines.architectures import POSITIONS, VOCABULARY  # noqa: E402
from engines.encoders import POOLINGS, encoder, saved_encoder, with_modules, written  # noqa: E402
from engines.saved import saved, tokenizer  # noqa: E402

AGREEMENT = 1e-5
SPEC = ModelSpec("em", Path("em"), kind="embedding")


def spec_of(**choices):
    """The registration, with choices."""
    return ModelSpec("em", Path("em"), kind="embedding", **choices)


def vectors_of(loaded, texts):
    """What a loaded model makes of texts."""
    return loaded.scorer.score([Variants(tuple(loaded.text.tokens(texts)))], lambda: None)[0]


def one_by_one(model, loaded, texts, pooling):
    """The vectors by their definition."""
    rows = []
    for ids in loaded.text.tokens(texts):
        with torch.inference_mode():
            states = model(torch.from_numpy(ids)[None]).last_hidden_state[0].double().numpy()
        row = {"mean": states.mean(axis=0), "first": states[0], "last": states[-1]}[pooling]
        rows.append(row / np.linalg.norm(row))
    return np.stack(rows)


TEXTS = ["the quick brown fox", "a", "an answer to a question that is longer than the others", "jumps"]


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta", "llama", "qwen3"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_states_become_one_vector(tmp_path, name, pooling):
    """Encoders of every kind give the mean, the first or the last state of each text, at length 1, in any company."""
    model = saved_encoder(tmp_path / "em", name)
    loaded = load_embedding(spec_of(pooling=pooling, batch_tokens=40), tmp_path)
    found = vectors_of(loaded, TEXTS)
    assert found.dtype == np.float64
    assert np.abs(found - one_by_one(model, loaded, TEXTS, pooling)).max() <= AGREEMENT
    assert np.abs(np.linalg.norm(found, axis=1) - 1.0).max() <= 1e-14
    assert (loaded.n_dimensions, loaded.pooling) == (32, pooling)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kinds", [("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")])
def test_a_directory_of_sentence_transformers_says_how(tmp_path, pooling, kinds):
    """The pooling is the directory's; vectors have length 1 with and without a module for that."""
    model = saved_encoder(tmp_path / "em")
    with_modules(tmp_path / "em", *kinds, pooling=pooling)
    loaded = load_embedding(SPEC, tmp_path)
    assert loaded.pooling == pooling
    assert np.abs(vectors_of(loaded, TEXTS) - one_by_one(model, loaded, TEXTS, pooling)).max() <= AGREEMENT
    assert load_embedding(spec_of(pooling=pooling), tmp_path).pooling == pooling


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({}, "mean"),
    ],
)
def test_poolings_are_read_as_every_version_writes_them(tmp_path, settings, pooling):
    """One field or a flag for each mode; nothing at all is the mean; a factor of √length makes no other vector."""
    saved_encoder(tmp_path / "em")
    with_modules(tmp_path / "em", owner="sentence_transformers.base.modules.whatever.")
    written(tmp_path / "em" / "1_Pooling" / "config.json", settings)
    assert load_embedding(SPEC, tmp_path).pooling == pooling


def test_the_shortest_limit_holds(tmp_path):
    """Of the registration, sentence-transformers, the tokenizer and the model's positions."""
    saved_encoder(tmp_path / "em")
    with_modules(tmp_path / "em")
    assert load_embedding(SPEC, tmp_path).max_tokens == POSITIONS
    file = tmp_path / "em" / "tokenizer_config.json"
    written(file, {**json.loads(file.read_text()), "model_max_length": 60})
    assert load_embedding(SPEC, tmp_path).max_tokens == 60
    written(tmp_path / "em" / "sentence_bert_config.json", {"max_seq_length": 50, "do_lower_case": False})
    assert load_embedding(SPEC, tmp_path).max_tokens == 50
    assert load_embedding(spec_of(max_tokens=40), tmp_path).max_tokens == 40


def test_lower_case_is_read_where_the_directory_says_so(tmp_path):
    """Then letters of both cases are one text to the model, and the tokenizer has another identity."""
    saved_encoder(tmp_path / "em")
    with_modules(tmp_path / "em")
    plain = load_embedding(SPEC, tmp_path).text
    written(tmp_path / "em" / "sentence_bert_config.json", {"max_seq_length": None, "do_lower_case": True})
    lowered = load_embedding(SPEC, tmp_path).text
    (upper, lower), (kept, _) = lowered.tokens(["The Fox", "the fox"]), plain.tokens(["The Fox", "the fox"])
    assert upper.tolist() == lower.tolist() != kept.tolist()
    assert plain.identity != lowered.identity


def test_positions_behind_that_of_padding_are_no_room(tmp_path):
    """A RoBERTa of 256 positions of which padding has number 0 reads 255 tokens, and fails at none of them."""
    saved_encoder(tmp_path / "em", "roberta")
    loaded = load_embedding(spec_of(pooling="mean"), tmp_path)
    assert loaded.max_tokens == POSITIONS - 1
    full = Variants((np.full(loaded.max_tokens, 7, dtype=np.int64),))
    assert np.isfinite(loaded.scorer.score([full], lambda: None)[0]).all()
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        loaded.scorer.score([Variants((np.full(POSITIONS, 7, dtype=np.int64),))], lambda: None)


def test_truncation_and_padding_of_a_tokenizers_file_are_undone(tmp_path):
    """A file that asks to cut at five tokens and to fill up to nine changes neither tokens nor identity."""
    saved_encoder(tmp_path / "em")
    plain = load_embedding(spec_of(pooling="mean"), tmp_path).text
    changed = tokenizer(template=None)
    changed.backend_tokenizer.enable_truncation(5)
    changed.backend_tokenizer.enable_padding(length=9)
    changed.backend_tokenizer.save(str(tmp_path / "em" / "tokenizer.json"))
    cut = load_embedding(spec_of(pooling="mean"), tmp_path).text
    assert [row.tolist() for row in cut.tokens(TEXTS)] == [row.tolist() for row in plain.tokens(TEXTS)]
    assert max(map(len, cut.tokens(TEXTS))) > 5
    assert cut.identity == plain.identity


def test_a_model_without_the_layer_that_nobody_reads_is_served(tmp_path):
    """Weights of the pooler of BERT need not be there."""
    model = saved_encoder(tmp_path / "em")
    file = tmp_path / "em" / "model.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if not name.startswith("pooler")}, file, {"format": "pt"})
    loaded = load_embedding(spec_of(pooling="mean"), tmp_path)
    assert np.abs(vectors_of(loaded, TEXTS) - one_by_one(model, loaded, TEXTS, "mean")).max() <= AGREEMENT


def without_weights(name):
    """A change that takes weights out of a file."""

    def change(folder):
        weights = load_file(folder / "model.safetensors")
        assert any(name in key for key in weights)
        kept = {key: value for key, value in weights.items() if name not in key}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return change


def without_safetensors(folder):
    """Weights in a format that can run code."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def modules(*kinds, **choices):
    """A change that writes the files of sentence-transformers."""
    return lambda folder: with_modules(folder, *kinds, **choices)


def pooled_by(**settings):
    """A change of the pooling."""

    def change(folder):
        with_modules(folder)
        written(folder / "1_Pooling" / "config.json", settings)

    return change


def leading_outside(folder):
    """A pooling outside the directory for models."""
    with_modules(folder)
    found = json.loads((folder / "modules.json").read_text())
    found[1]["path"] = "../../elsewhere"
    written(folder / "modules.json", found)
    (folder / "../../elsewhere").mkdir(exist_ok=True)
    written(folder / "../../elsewhere/config.json", {"pooling_mode": "mean"})


def linked_outside(folder):
    """A pooling that is a link out of the directory for models."""
    with_modules(folder)
    (folder / "1_Pooling" / "config.json").unlink()
    (folder / "1_Pooling" / "config.json").symlink_to(Path(__file__))


def in_a_folder(folder):
    """A transformer that is not beside modules.json."""
    with_modules(folder)
    found = json.loads((folder / "modules.json").read_text())
    found[0]["path"] = "0_Transformer"
    written(folder / "modules.json", found)


def of_nan(folder):
    """Weights that are no numbers."""
    weights = load_file(folder / "model.safetensors")
    save_file({name: value * float("nan") for name, value in weights.items()}, folder / "model.safetensors")


def of_a_decoder(folder):
    """A model that needs more than a text."""
    T5Model(T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
        folder
    )
    with_modules(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda _: None, "does not say how one vector is made .* expected the setting pooling: mean, first or last"),
        (modules("Transformer"), "expected the setting pooling"),
        (modules("Transformer", "Pooling", "Dense", "Normalize"), "modules.json has a module Dense, which is not"),
        (modules(owner="custom_code."), "modules.json has a module Transformer, which is not computed here"),
        (modules("Transformer", "Pooling", "Pooling"), "modules.json has 2 poolings; expected one"),
        (lambda folder: written(folder / "modules.json", {}), "modules.json holds a dict; expected a list"),
        (lambda folder: written(folder / "modules.json", ["x"]), "modules.json has a module 'x'"),
        (in_a_folder, "has its Transformer in 0_Transformer; expected it in the same folder"),
        (pooled_by(pooling_mode="max"), "its pooling is max; expected one of mean, cls and lasttoken"),
        (pooled_by(pooling_mode=["mean", "cls"]), "its pooling is mean with cls"),
        (pooled_by(pooling_mode_mean_tokens=True, pooling_mode_max_tokens=True), "its pooling is max with mean"),
        (leading_outside, "modules.json leads outside the directory for models"),
        (linked_outside, "config.json leads outside the directory for models"),
        (without_safetensors, r"got pytorch_model\.bin, which can run code; expected weights as safetensors"),
        (of_nan, "its states are no finite numbers"),
        (of_a_decoder, "gives no state for each token of a text"),
        (
            lambda folder: written(folder / "sentence_bert_config.json", {"max_seq_length": "512"}),
            "max_seq_length is 512; expected a number of tokens",
        ),
    ],
)
def test_an_unsuitable_directory_says_at_boot_why(tmp_path, change, sentence):
    """The model is named, and what is wrong with it, before any request is taken."""
    root = tmp_path / "models"
    saved_encoder(root / "em")
    if change in {of_nan, without_safetensors}:
        with_modules(root / "em")
    change(root / "em")
    with pytest.raises(ModelUnsuitableError, match=rf"^model em.*{sentence}"):
        load_embedding(SPEC, root)


def test_weights_that_are_not_there_are_not_made_up(tmp_path):
    """A layer or a head without weights would be random: both kinds of models are refused."""
    saved_encoder(tmp_path / "em")
    without_weights("layer.1.output.dense")(tmp_path / "em")
    with pytest.raises(ModelUnsuitableError, match=r"^model em: its files lack 2 of the weights of a BertModel, among"):
        load_embedding(spec_of(pooling="mean"), tmp_path)
    saved(tmp_path / "rm")
    without_weights("score")(tmp_path / "rm")
    with pytest.raises(ModelUnsuitableError, match=r"among them score\.weight; expected all of them"):
        load_reward(ModelSpec("rm", Path("rm")), tmp_path)


def test_a_registration_does_not_contradict_its_directory(tmp_path):
    """Another pooling than the one that the model was made for is refused, not taken."""
    saved_encoder(tmp_path / "em")
    with_modules(tmp_path / "em")
    with pytest.raises(ModelUnsuitableError, match="registered with pooling last, and its directory was made for mean"):
        load_embedding(spec_of(pooling="last"), tmp_path)


def test_pooling_is_in_float32_whatever_the_weights(tmp_path):
    """In bfloat16 the mean of equal weights is that of the model's own states, added up in float32."""
    saved_encoder(tmp_path / "em")
    loaded = load_embedding(spec_of(pooling="mean", dtype="bfloat16"), tmp_path)
    model = encoder().bfloat16()
    ids = loaded.text.tokens(TEXTS[2:3])[0]
    with torch.inference_mode():
        states = model(torch.from_numpy(ids)[None]).last_hidden_state[0].double().numpy()
    expected = states.mean(axis=0) / np.linalg.norm(states.mean(axis=0))
    assert np.abs(vectors_of(loaded, TEXTS[2:3])[0] - expected).max() <= 1e-6
