import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

from transformers import ModernBertConfig, ModernBertForSequenceClassification  # noqa: E402

from creditd.engines.errors import (  # noqa: E402
    EngineExpiredError,
    EngineFailedError,
    EngineOverloadedError,
    EngineStoppedError,
    ModelUnsuitableError,
)
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.protocol import VariantTexts  # noqa: E402
from creditd.engines.reward_engine import RewardEngine  # noqa: E402
from engines.architectures import SHAPE  # noqa: E402
from engines.attentions import own_row, sharp  # noqa: E402
from engines.saved import TEMPLATE, tokenizer  # noqa: E402
from engines.texts import of_one  # noqa: E402

PATIENCE_S = 120.0
AGREEMENT = 1e-6
MESSAGES = [{"role": "user", "content": "a question"}]
UNITS = ("the quick", " brown fox", "\n", "", " jumps ov", "er the lazy dog")


def loaded(folder, name="llama", *, template=TEMPLATE, config=None, **spec):
    """An engine of a small model whose attention is far from even."""
    sharp(name, **(config or {})).save_pretrained(folder / "rm")
    tokenizer(template).save_pretrained(folder / "rm")
    return RewardEngine.load(ModelSpec("rm", Path("rm"), **spec), folder)


@pytest.fixture
def engine(tmp_path):
    """One that reads tries of at most 80 tokens a text."""
    made = loaded(tmp_path, max_tokens=80)
    yield made
    made.close(PATIENCE_S)


def whole(prompt, units):
    """A completion with all its units."""
    return VariantTexts(prompt, tuple(units), np.ones((1, len(units)), dtype=np.bool_))


def attended(engine, *texts, **options):
    """What an engine answers."""
    return engine.attention(engine.prepared_attention(texts, **options)).result(PATIENCE_S)


def expected(engine, text, units, start, position=-1):
    """Weights of units in the text that a model reads, by its tokens' characters and the row of plain transformers."""
    made = tokenizer()
    read = made(text, return_offsets_mapping=True)
    row = own_row(engine._loaded.model, read["input_ids"], position)
    found, ends = np.zeros(len(units)), start + np.cumsum(list(map(len, units)))
    for weight, (first, last) in zip(row, read["offset_mapping"], strict=True):
        owners = [int(np.searchsorted(ends, at, side="right")) if at >= start else -1 for at in range(first, last)]
        owner = max(dict.fromkeys(owners), key=owners.count)
        if 0 <= owner < len(units):
            found[owner] += weight
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "deberta"])
@pytest.mark.parametrize("tokens", [24, 4096])
def test_units_have_the_attention_to_their_tokens(tmp_path, name, tokens):
    """Of texts of unequal lengths asked together: sums of plain transformers' row over the tokens of each unit."""
    engine = loaded(tmp_path, name, batch_tokens=tokens)
    rest = [UNITS[:2], ("a", " b", " c"), UNITS * 3, UNITS]
    found = attended(engine, *(whole("why?", units) for units in rest))
    assert (found.failures, found.usage.evaluations) == ({}, 4)
    for weights, units in zip(found.weights, rest, strict=True):
        own = expected(engine, "why?" + "".join(units), units, 4, 0 if name in {"bert", "deberta"} else -1)
        assert np.abs(weights - own).max() <= AGREEMENT
        assert (weights.dtype, weights.sum() < 1) == (np.float64, True)
    engine.close(PATIENCE_S)


TRIMS = TEMPLATE.replace("message['content']", "message['content'] | trim")
CHANGES = TEMPLATE.replace("message['content']", "message['content'] | replace(' b', ' x')")


@pytest.mark.parametrize("template", [TEMPLATE, TRIMS], ids=["plain", "trims"])
def test_a_completion_is_found_in_what_the_template_makes_of_it(tmp_path, template):
    """Its units have their attention and the template has its own, whether that strips the completion or not."""
    engine = loaded(tmp_path, template=template)
    units = (" the quick", " brown fox", " \n")
    text = engine._loaded.text._with_completion(MESSAGES, "".join(units))
    shown = "".join(units) if template == TEMPLATE else "".join(units).strip()
    start = text.index(shown)
    found = attended(engine, whole(MESSAGES, units))
    kept = units if template == TEMPLATE else ("the quick", " brown fox", "")
    assert np.abs(found.weights[0] - expected(engine, text, kept, start)).max() <= AGREEMENT
    engine.close(PATIENCE_S)


def test_a_completion_that_the_template_changes_fails_alone(tmp_path):
    """A template that writes other letters shows no unit; a prompt that is a string is read as it is."""
    engine = loaded(tmp_path, template=CHANGES)
    found = attended(engine, whole(MESSAGES, ("a", " b")), whole("q", ("a", " b")))
    assert {place: failure.code for place, failure in found.failures.items()} == {0: "invalid_request"}
    assert "does not show the completion as it is" in found.failures[0].detail
    assert [np.isnan(weights).any() for weights in found.weights] == [True, False]
    engine.close(PATIENCE_S)


def test_an_absent_unit_has_no_weight(engine):
    """A row of a coalition is its text; units that are not there are passed over."""
    some = VariantTexts("why?", ("a", " b", " c"), np.array([[True, False, True]]))
    found = attended(engine, some, whole("why?", ("a", " c")))
    assert found.weights[0].tolist() == [found.weights[1][0], 0.0, found.weights[1][1]]


def test_a_completion_without_text_has_no_weight(engine):
    """Nothing is attended to where nothing stands, and that is no failure."""
    found = attended(engine, whole("why?", ()), whole("why?", ("", "")))
    assert [weights.tolist() for weights in found.weights] == [[], [0.0, 0.0]]
    assert found.failures == {}


def test_what_cannot_be_read_fails_alone(engine):
    """Texts that are too long are named and never cut; the others are answered."""
    found = attended(engine, whole("a", ("b", " c")), whole("a", ("b" * 199,)), whole("a", ("d",)))
    assert {place: failure.code for place, failure in found.failures.items()} == {1: "context_exceeded"}
    assert np.isnan(found.weights[1]).all()
    alone = attended(engine, whole("a", ("b" * 199,)))
    assert (set(alone.failures), alone.usage.evaluations) == ({0}, 0)


def test_what_a_model_does_not_read_has_no_weight(tmp_path):
    """A model whose padding ends a text reads the token before it, and its attention begins there."""
    engine = loaded(tmp_path, template=TEMPLATE + "<eos>", config={"pad_token_id": 2})
    found = attended(engine, whole(MESSAGES, (" the", " fox")))
    text = engine._loaded.text._with_completion(MESSAGES, " the fox")
    assert text.endswith("<eos>")
    own = expected(engine, text.removesuffix("<eos>"), (" the", " fox"), text.index(" the fox"))
    assert np.abs(found.weights[0] - own).max() <= AGREEMENT
    engine.close(PATIENCE_S)


def test_the_cost_is_known_before_anything_is_run(engine):
    """Shared beginnings are counted once, as for scores, and nothing goes through the model."""
    passes = []
    engine._loaded.model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    texts = [whole("why?", UNITS[:1]), whole("why?", UNITS), whole("why?", UNITS)]
    prepared = engine.prepared_attention(texts)
    scores = engine.prepared(texts)
    assert prepared.usage == scores.usage
    assert (prepared.usage.evaluations, prepared.n_units, passes) == (2, (1, 6, 6), [])
    assert 0 < prepared.usage.tokens_computed < prepared.usage.tokens_naive / 2
    found = engine.attention(prepared).result(PATIENCE_S)
    assert found.usage.tokens_computed == prepared.usage.tokens_computed
    assert found.usage.engine_s > 0
    assert len(passes) == 1


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_scores_and_attention_share_the_queue_and_change_no_bit_of_each_other(tmp_path, name):
    """Asked at a time, in one batch or not, each has the numbers that it has by itself."""
    engine = loaded(tmp_path, name)
    scores = [engine.prepared([of_one("why?", f" {n}")]) for n in range(4)]
    looks = [engine.prepared_attention([whole("why?", (f" {n}", " b"))]) for n in range(4)]
    alone = [engine.submit(one).result(PATIENCE_S).rewards[0] for one in scores]
    rows = [engine.attention(one).result(PATIENCE_S).weights[0] for one in looks]
    asked = [(engine.submit(score), engine.attention(look)) for score, look in zip(scores, looks, strict=True)]
    for (score, look), reward, row in zip(asked, alone, rows, strict=True):
        assert score.result(PATIENCE_S).rewards[0] == pytest.approx(reward, abs=AGREEMENT)
        assert np.abs(look.result(PATIENCE_S).weights[0] - row).max() <= AGREEMENT
    again = [engine.submit(one).result(PATIENCE_S).rewards[0] for one in scores]
    assert again == alone
    engine.close(PATIENCE_S)


def test_texts_that_are_run_alone_have_equal_bits_in_any_request(engine):
    """Who asks to be alone gets the same bits with others and without."""
    texts = [whole(f"question {n}", (" yes", " no", f" {n}")) for n in range(4)]
    together = attended(engine, *texts, alone=True).weights
    for weights, text in zip(together, texts, strict=True):
        assert attended(engine, text, alone=True).weights[0].tolist() == weights.tolist()
    shared = attended(engine, *texts).weights
    assert max(np.abs(one - other).max() for one, other in zip(shared, together, strict=True)) <= AGREEMENT


def test_a_large_work_is_run_in_slices_and_comes_back_in_order(tmp_path):
    """Whatever the order in which texts are cheapest together, each has its own weights."""
    engine = loaded(tmp_path, batch_tokens=4)
    texts = [whole("why?", (f" {word}",) * length) for length in (3, 1, 5) for word in ("fox", "dog", "the", "a")]
    prepared = engine.prepared_attention(texts)
    assert len(prepared.work.parts) > 1
    found = engine.attention(prepared).result(PATIENCE_S)
    assert engine.status().n_batches == len(prepared.work.parts)
    for weights, text in zip(found.weights, texts, strict=True):
        assert np.abs(weights - attended(engine, text).weights[0]).max() <= AGREEMENT
    engine.close(PATIENCE_S)


def held_back(engine):
    """Let the engine wait in its next pass until an event is set."""
    begun, held = threading.Event(), threading.Event()

    def waits(*_):
        begun.set()
        assert held.wait(PATIENCE_S)

    handle = engine._loaded.model.base_model.register_forward_pre_hook(waits)
    return begun, held, handle


def test_attention_waits_in_the_queue_as_scores_do(tmp_path):
    """What is cancelled or late is not run, what is too much is refused, and a closed engine refuses all."""
    engine = loaded(tmp_path, max_queued_tokens=20)
    text = whole("a", ("b", " c"))
    begun, held, handle = held_back(engine)
    first = engine.submit(engine.prepared([of_one("a", "b")]))
    assert begun.wait(PATIENCE_S)
    cancelled, late = (
        engine.attention(engine.prepared_attention([text]), expires) for expires in (float("inf"), time.monotonic() - 1)
    )
    assert cancelled.cancel()
    with pytest.raises(EngineOverloadedError):
        engine.attention(engine.prepared_attention([whole("a", UNITS * 2)]))
    held.set()
    first.result(PATIENCE_S)
    with pytest.raises(EngineExpiredError):
        late.result(PATIENCE_S)
    handle.remove()
    assert engine.status().n_batches == 1
    engine.close(PATIENCE_S)
    with pytest.raises(EngineStoppedError):
        engine.attention(engine.prepared_attention([text]))


def test_attention_that_fails_leaves_the_model_as_it_was(engine):
    """An error in a pass is the error of its work; scores after it are those before it."""
    work = engine.prepared([of_one("a", "b")])
    before = engine.submit(work).result(PATIENCE_S).rewards.tolist()

    def fails(*_):
        raise LookupError

    broken = engine._loaded.model.base_model.norm.register_forward_pre_hook(fails)
    with pytest.raises(EngineFailedError, match="LookupError"):
        attended(engine, whole("a", ("b",)))
    broken.remove()
    assert engine.submit(work).result(PATIENCE_S).rewards.tolist() == before


def test_attention_is_asked_of_one_completion_of_each_text(engine):
    """A table of coalitions is refused."""
    with pytest.raises(ValueError, match="one completion for each text"):
        engine.prepared_attention([VariantTexts("q", ("a", "b"), np.eye(2, dtype=np.bool_))])


def test_a_model_whose_attention_is_not_told_has_scores_all_the_same(tmp_path):
    """The sentence says what is wrong with it, when its attention is asked for and not before."""
    config = ModernBertConfig(
        **SHAPE, classifier_pooling="mean", cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
    )
    ModernBertForSequenceClassification(config).save_pretrained(tmp_path / "rm")
    tokenizer().save_pretrained(tmp_path / "rm")
    engine = RewardEngine.load(ModelSpec("rm", Path("rm")), tmp_path)
    with pytest.raises(ModelUnsuitableError, match="cannot be told: its head reads 5 of 5 positions"):
        engine.prepared_attention([whole("q", ("a",))])
    assert np.isfinite(engine.submit(engine.prepared([of_one("q", "a")])).result(PATIENCE_S).rewards).all()
    engine.close(PATIENCE_S)


def test_messages_need_a_template(tmp_path):
    """A model without a template refuses messages with a sentence, and looks at what it can read."""
    engine = loaded(tmp_path, template=None)
    found = attended(engine, whole(MESSAGES, ("a",)), whole("q", ("a",)))
    assert "expected a prompt that is a string" in found.failures[0].detail
    assert np.isfinite(found.weights[1]).all()
    engine.close(PATIENCE_S)


def test_who_has_gone_is_not_worked_for(engine):
    """The checkpoint is called before each text, and what it raises ends the work."""

    def gone():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        engine.prepared_attention([whole("q", ("a",))], checkpoint=gone)


def test_a_special_token_is_the_text_that_it_is_called(engine):
    """The mask of a rule by id is what the tokenizer reads as that id wherever it stands."""
    text, ids = engine.token_text(0), engine._loaded.text
    assert text == "<pad>"
    assert ids.tokens("", "the" + text + "fox").tolist().count(0) == 1
    assert (engine.token_text(1), engine.token_text(2)) == ("<bos>", "<eos>")


def test_a_token_that_is_read_otherwise_between_others_has_no_text(engine):
    """A piece of a word, and a byte that is no character, are refused; so is what the tokenizer does not have."""
    made = tokenizer()
    the = made("the")["input_ids"][0]
    half = made("é")["input_ids"][0]
    for token in (the, half):
        with pytest.raises(ModelUnsuitableError, match=f"token {token} has no text that is read as it alone"):
            engine.token_text(token)
    for token in (-1, len(made)):
        with pytest.raises(ModelUnsuitableError, match=f"got token {token}; expected one of the tokenizer's 0 to"):
            engine.token_text(token)


def test_a_token_without_an_embedding_has_no_text(tmp_path):
    """A tokenizer may have more tokens than the model."""
    made = tokenizer()
    made.add_tokens([f"[new {n}]" for n in range(10)])
    sharp("llama").save_pretrained(tmp_path / "rm")
    made.save_pretrained(tmp_path / "rm")
    engine = RewardEngine.load(ModelSpec("rm", Path("rm")), tmp_path)
    with pytest.raises(
        ModelUnsuitableError, match=f"has no embedding for token {len(made) - 1}; expected one of 0 to 299"
    ):
        engine.token_text(len(made) - 1)
    engine.close(PATIENCE_S)
