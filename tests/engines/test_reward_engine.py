import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402

from creditd.engines.errors import EngineStoppedError  # noqa: E402
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.protocol import VariantTexts  # noqa: E402
from creditd.engines.reward_engine import RewardEngine  # noqa: E402
from creditd.engines.reward_scorers import Variants  # noqa: E402
from engines.saved import TEMPLATE, saved, tokenizer  # noqa: E402
from engines.texts import of_one  # noqa: E402

PATIENCE_S = 60.0
AGREEMENT = 1e-5


@pytest.fixture
def engine(tmp_path):
    """An engine of a small model that reads tries."""
    saved(tmp_path / "rm")
    made = RewardEngine.load(ModelSpec("rm", Path("rm"), max_tokens=80), tmp_path)
    yield made
    made.close(PATIENCE_S)


def passes_of(engine):
    """Forward passes of the model from now on, as a list that grows."""
    found = []
    engine._loaded.model.base_model.register_forward_pre_hook(lambda *_: found.append(1))
    return found


def rewards_of(engine, *texts):
    """What an engine answers."""
    return engine.submit(engine.prepared(texts)).result(PATIENCE_S)


def one_by_one(engine, prompt, completions):
    """The model's own scores of whole texts."""
    with torch.inference_mode():
        rows = [torch.from_numpy(engine._loaded.text.tokens(prompt, text))[None] for text in completions]
        return [engine._loaded.model(row).logits.item() for row in rows]


MESSAGES = [{"role": "user", "content": "why?"}]


def test_texts_become_rewards(engine):
    """Prompts of both kinds with completions have the model's own scores."""
    found = rewards_of(engine, of_one("why?", " because"), of_one(MESSAGES, "because"))
    expected = one_by_one(engine, "why?", [" because"]) + one_by_one(engine, MESSAGES, ["because"])
    assert found.rewards == pytest.approx(expected, abs=AGREEMENT)
    assert (found.failures, found.usage.evaluations) == ({}, 2)
    assert found.usage.engine_s > 0


DROPS_EMPTY = "{% for m in messages %}{% if m.content %}<{{ m.role }}> {{ m.content }}{% endif %}{% endfor %}"
STRIPS_LINES = TEMPLATE.replace("message['content']", "message['content'].rstrip('\\n')")


@pytest.mark.parametrize("prompt", ["why?", MESSAGES])
@pytest.mark.parametrize(
    "template",
    [TEMPLATE, TEMPLATE.replace("message['content']", "message['content'] | trim"), DROPS_EMPTY, STRIPS_LINES],
    ids=["plain", "trims", "drops_empty", "strips_lines"],
)
def test_coalitions_have_the_scores_of_their_whole_texts(tmp_path, prompt, template):
    """Every coalition of units is scored as its text, spliced or not, and computed by its distinct prefixes."""
    saved(tmp_path / "rm", template=template)
    engine = RewardEngine.load(ModelSpec("rm", Path("rm")), tmp_path)
    units = ("the quick", " brown fox\n", "jumps ", "over", " it\n")
    coalitions = np.array(list(itertools.product([False, True], repeat=5)))
    prepared = engine.prepared([VariantTexts(prompt, units, coalitions)])
    found = engine.submit(prepared).result(PATIENCE_S)
    texts = ["".join(itertools.compress(units, row)) for row in coalitions]
    assert found.rewards == pytest.approx(one_by_one(engine, prompt, texts), abs=AGREEMENT)
    assert found.usage.tokens_naive == sum(len(engine._loaded.text.tokens(prompt, text)) for text in texts)
    assert 0 < found.usage.tokens_spliced <= found.usage.tokens_naive
    assert found.usage.tokens_computed < found.usage.tokens_naive / 2
    engine.close(PATIENCE_S)


def test_the_state_that_is_read_is_the_one_that_the_model_reads(tmp_path):
    """A model whose padding is its end of text reads the token before it, and so does its engine."""
    saved(tmp_path / "rm", template=TEMPLATE + "<eos>", pad_token_id=2)
    engine = RewardEngine.load(ModelSpec("rm", Path("rm")), tmp_path)
    units, coalitions = (" the", " quick", " fox"), np.array(list(itertools.product([False, True], repeat=3)))
    found = rewards_of(engine, VariantTexts(MESSAGES, units, coalitions))
    texts = ["".join(itertools.compress(units, row)) for row in coalitions]
    assert engine._loaded.text.tokens(MESSAGES, " the")[-1] == engine._loaded.pad_id == 2
    assert found.rewards == pytest.approx(one_by_one(engine, MESSAGES, texts), abs=AGREEMENT)
    engine.close(PATIENCE_S)


def test_a_token_without_an_embedding_fails_its_text_alone(tmp_path):
    """A tokenizer may know more than the model; a text with such a token has no score, and the others have theirs."""
    saved(tmp_path / "rm")
    made = tokenizer()
    made.add_tokens([f"[new {n}]" for n in range(10)])
    made.save_pretrained(tmp_path / "rm")
    engine = RewardEngine.load(ModelSpec("rm", Path("rm")), tmp_path)
    found = rewards_of(engine, of_one("a", "[new 9]"), of_one("a", "b"))
    assert np.isfinite(found.rewards).tolist() == [False, True]
    assert "no embedding for" in found.failures[0].detail
    engine.close(PATIENCE_S)


def test_what_is_too_long_is_said_and_never_cut(engine):
    """A text beyond the context has no reward and a reason; the others are scored."""
    found = rewards_of(engine, *(of_one("a", text) for text in ("b", "b" * 199, "c")))
    assert np.isfinite(found.rewards).tolist() == [True, False, True]
    assert set(found.failures) == {1}
    assert found.failures[1].code == "context_exceeded"
    assert "the model reads at most 80" in found.failures[1].detail
    alone = rewards_of(engine, of_one("a", "b" * 199))
    assert (np.isnan(alone.rewards).all(), alone.usage.evaluations) == (True, 0)


def test_a_text_of_no_token_is_no_zero(engine):
    """Where a tokenizer adds nothing, an empty prompt with an empty completion has nothing that can be scored."""
    found = rewards_of(engine, of_one("", ""))
    assert np.isnan(found.rewards).all()
    assert (found.failures[0].code, "no token" in found.failures[0].detail) == ("invalid_request", True)


def test_a_score_that_is_no_number_fails_its_text_alone(engine):
    """NaN is an error of its text, never a reward."""
    scorer = engine._loaded.scorer
    original = scorer.score
    scorer.score = lambda works, beat: [
        np.where(np.arange(len(one)) == 1, np.nan, one) for one in original(works, beat)
    ]
    found = rewards_of(engine, *(of_one("a", text) for text in ("b", "c", "d")))
    assert np.isfinite(found.rewards).tolist() == [True, False, True]
    assert found.failures[1].code == "non_finite_utility"


def test_concurrent_requests_share_forward_passes(engine):
    """Eight requests of four short variants that come at a time take fewer than four passes."""
    passes = passes_of(engine)
    works = [engine.prepared([of_one("why?", f" {n}{m}") for m in range(4)]) for n in range(8)]
    held = threading.Event()
    scorer = engine._loaded.scorer
    original = scorer.score

    def first_waits(asked, beat):
        assert held.wait(PATIENCE_S)
        return original(asked, beat)

    scorer.score = first_waits
    futures = [engine.submit(work) for work in works]
    held.set()
    together = [future.result(PATIENCE_S).rewards for future in futures]
    n_passes = len(passes)
    assert n_passes < 4
    alone = [engine.submit(work).result(PATIENCE_S).rewards for work in works]
    assert np.abs(np.concatenate(together) - np.concatenate(alone)).max() <= AGREEMENT
    assert len(passes) - n_passes == 8


def test_prompts_that_are_run_alone_have_equal_bits_in_any_request(engine):
    """Who asks to be alone gets the same bits with others and without, batch or no batch."""
    texts = [VariantTexts(f"question {n}", (" yes", " no", f" {n}"), np.eye(3, dtype=np.bool_)) for n in range(4)]
    together = engine.submit(engine.prepared(texts, alone=True)).result(PATIENCE_S).rewards.reshape(4, 3)
    for row, one in zip(together, texts, strict=True):
        alone = engine.submit(engine.prepared([one], alone=True)).result(PATIENCE_S).rewards
        assert alone.tolist() == row.tolist()
    shared = engine.submit(engine.prepared(texts)).result(PATIENCE_S).rewards.reshape(4, 3)
    assert np.abs(shared - together).max() <= AGREEMENT


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_large_work_is_run_in_slices(tmp_path, name):
    """Scores come back in the order of the variants, at little more than the cost of one piece."""
    saved(tmp_path / "rm", name)
    engine = RewardEngine.load(ModelSpec("rm", Path("rm"), batch_tokens=32, chunk_tokens=32), tmp_path)
    units = tuple(f" unit {n}" for n in range(6))
    coalitions = np.array(list(itertools.product([False, True], repeat=6)))
    coalitions = np.concatenate([coalitions, coalitions[::-1]])[np.random.default_rng(0).permutation(128)]
    prepared = engine.prepared([VariantTexts("a question", units, coalitions)])
    assert len(prepared.work.parts) > 1
    found = engine.submit(prepared).result(PATIENCE_S)
    texts = ["".join(itertools.compress(units, row)) for row in coalitions]
    expected = dict(zip(set(texts), one_by_one(engine, "a question", set(texts)), strict=True))
    assert found.rewards == pytest.approx([expected[text] for text in texts], abs=AGREEMENT)
    assert found.usage.evaluations == 64
    assert engine.status().n_batches == len(prepared.work.parts)
    whole = engine._loaded.scorer.n_tokens(Variants(tuple(engine._loaded.text.tokens("a question", t) for t in texts)))
    assert whole <= found.usage.tokens_computed <= whole + len(prepared.work.parts) * 40
    engine.close(PATIENCE_S)


def test_cancelled_work_is_dropped(engine):
    """Who stops waiting before the model begins costs nothing."""
    scorer, begun, held = engine._loaded.scorer, threading.Event(), threading.Event()
    original, asked = scorer.score, []

    def slow(works, beat):
        asked.append(len(works))
        begun.set()
        assert held.wait(PATIENCE_S)
        return original(works, beat)

    scorer.score = slow
    first, second = (engine.submit(engine.prepared([of_one("a", text)])) for text in ("b", "c"))
    assert begun.wait(PATIENCE_S)
    third = engine.submit(engine.prepared([of_one("a", "d")]))
    assert second.cancel() or second.done()
    assert third.cancel()
    held.set()
    first.result(PATIENCE_S)
    engine.close(PATIENCE_S)
    assert sum(asked) <= 2


def test_an_engine_says_what_it_is(engine):
    """Status and identity name what an operator asks for, and what decides a score."""
    rewards_of(engine, of_one("a", "b"))
    status = engine.status()
    assert (status.spec.id, status.spec.kind, status.spec.dtype, status.max_tokens) == ("rm", "reward", "float32", 80)
    assert (status.backend, status.reads_tries, status.queued_tokens, status.alive) == ("local", True, 0, True)
    assert status.n_bytes > 0
    assert status.silent_s == 0
    assert status.attention == "sdpa"
    assert status.fingerprint in engine.identity
    assert status.is_remembered


def test_a_template_changes_the_identity(tmp_path):
    """Scores under another template are other scores."""
    saved(tmp_path / "rm")
    own, other = (
        RewardEngine.load(ModelSpec("rm", Path("rm"), chat_template=template), tmp_path)
        for template in (None, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    )
    assert own.identity != other.identity
    for engine in (own, other):
        engine.close(PATIENCE_S)
        with pytest.raises(EngineStoppedError):
            rewards_of(engine, of_one("a", "b"))


def test_messages_need_a_template(tmp_path):
    """A model without a template refuses messages with a sentence, and scores what it can."""
    saved(tmp_path / "rm", template=None)
    engine = RewardEngine.load(ModelSpec("rm", Path("rm")), tmp_path)
    found = rewards_of(engine, of_one(MESSAGES, "a"), of_one("q", "a"))
    assert found.failures[0].code == "invalid_request"
    assert "expected a prompt that is a string" in found.failures[0].detail
    assert np.isfinite(found.rewards).tolist() == [False, True]
    engine.close(PATIENCE_S)
