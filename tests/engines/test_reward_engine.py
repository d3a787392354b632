import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402

from creditd.engines.errors import EngineStoppedError, ModelUnsuitableError  # noqa: E402
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.reward_engine import RewardEngine  # noqa: E402
from engines.saved import saved  # noqa: E402

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


def test_texts_become_rewards(engine):
    """Prompts of both kinds with completions have the model's own scores."""
    prompts = ["why?", [{"role": "user", "content": "why?"}]]
    asked = engine.tokens_of(prompts, [" because", "because"])
    assert asked.fitting.tolist() == [0, 1]
    rewards = engine.submit(asked.work).result(PATIENCE_S)
    with torch.inference_mode():
        for reward, tokens in zip(rewards, asked.work.sequences, strict=True):
            logits = engine._loaded.model(torch.from_numpy(tokens)[None]).logits
            assert reward == pytest.approx(logits.item(), abs=AGREEMENT)


def test_what_is_too_long_is_said_and_never_cut(engine):
    """A text beyond the context is left out of the work, with its length; the others are scored."""
    asked = engine.tokens_of(["a"] * 3, ["b", "b" * 199, "c"])
    assert asked.fitting.tolist() == [0, 2]
    assert set(asked.too_long) == {1}
    assert asked.too_long[1] > 80
    assert len(engine.submit(asked.work).result(PATIENCE_S)) == 2
    assert engine.tokens_of(["a"], ["b" * 199]).work is None


def test_concurrent_requests_share_forward_passes(engine):
    """Eight requests of four short variants that come at a time take fewer than four passes."""
    passes = passes_of(engine)
    works = [engine.tokens_of(["why?"] * 4, [f" {n}{m}" for m in range(4)]).work for n in range(8)]
    held = threading.Event()
    scorer = engine._loaded.scorer
    original = scorer.score

    def first_waits(asked, beat):
        assert held.wait(PATIENCE_S)
        return original(asked, beat)

    scorer.score = first_waits
    futures = [engine.submit(work) for work in works]
    held.set()
    together = [future.result(PATIENCE_S) for future in futures]
    n_passes = len(passes)
    assert n_passes < 4
    alone = [engine.submit(work).result(PATIENCE_S) for work in works]
    assert np.abs(np.concatenate(together) - np.concatenate(alone)).max() <= AGREEMENT
    assert len(passes) - n_passes == 8


def test_an_engine_says_what_it_is(engine):
    """Status and identity name what an operator asks for, and what decides a score."""
    engine.submit(engine.tokens_of(["a"], ["b"]).work).result(PATIENCE_S)
    status = engine.status()
    assert (status.id, status.kind, status.dtype, status.max_tokens) == ("rm", "reward", "float32", 80)
    assert (status.reads_tries, status.queued_tokens) == (True, 0)
    assert status.n_bytes > 0
    assert status.silent_s >= 0
    assert "rm" in engine.identity


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
            engine.submit(engine.tokens_of(["a"], ["b"]).work)


def test_messages_need_a_template(tmp_path):
    """A model without a template refuses messages with a sentence, before anything is queued."""
    saved(tmp_path / "rm", template=None)
    engine = RewardEngine.load(ModelSpec("rm", Path("rm")), tmp_path)
    with pytest.raises(ModelUnsuitableError, match="expected a prompt that is a string"):
        engine.tokens_of([[{"role": "user", "content": "q"}]], ["a"])
    engine.close(PATIENCE_S)
