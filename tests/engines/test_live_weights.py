import hashlib

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from creditd.engines import live_weights  # noqa: E402
from creditd.engines.errors import (  # noqa: E402
    EngineFailedError,
    EngineStoppedError,
    WeightsRefusedError,
    WeightVersionMismatchError,
    WeightVersionUnknownError,
)
from creditd.engines.policy_protocol import WeightPin  # noqa: E402
from creditd.engines.weight_files import staged_from_path  # noqa: E402
from creditd.engines.weight_uploads import ShardPlace, WeightUploads  # noqa: E402
from creditd.engines.weight_values import PIECE_BYTES, demand_finite  # noqa: E402
from engines.live_policies import PATIENCE_S, Served, logits_of, policy, same  # noqa: E402
from engines.tensor_files import checksum  # noqa: E402


@pytest.fixture
def served(tmp_path):
    """A policy that answers, and the weights `new` below its root."""
    made = Served(policy(0), tmp_path)
    made.saved(policy(1), "new")
    yield made
    made.close()


def changed(served, change, name="bad"):
    """The file of the new weights with its tensors changed."""
    tensors = load_file(served.root / "new/model.safetensors")
    change(tensors)
    (served.root / name).mkdir()
    save_file(tensors, served.root / name / "model.safetensors", metadata={"format": "pt"})
    return name


def test_pushed_weights_give_the_numbers_of_the_model_that_they_are_from(served):
    """Bit for bit; the report says what was done, and what depends on the weights is renewed before anybody asks."""
    report = served.push("new", "v1")
    n_bytes = sum(tensor.nbytes for tensor in load_file(served.root / "new/model.safetensors").values())
    assert (report.weight_version, report.n_bytes, report.cast_from, report.skipped) == ("v1", n_bytes, None, False)
    assert report.n_tensors == len(policy().state_dict())
    assert min(report.verify_s, report.swap_s) > 0.0
    scores, version = served.answer()
    assert version == "v1"
    assert np.array_equal(scores, logits_of(policy(1)))
    (seen,) = served.changes
    assert np.array_equal(seen, scores)
    assert served.versions.state().n_swaps == 1


def test_the_tensors_of_the_model_stay_where_they_are(served):
    """The copy goes into them: whoever holds a parameter holds the new numbers, and no second model is made."""
    before = {name: (id(one), one.data_ptr()) for name, one in served.model.named_parameters()}
    served.push("new", "v1")
    assert {name: (id(one), one.data_ptr()) for name, one in served.model.named_parameters()} == before


def test_the_files_of_the_registered_model_are_not_written_to(tmp_path):
    """Weights that are mapped from their files get pages of their own."""
    policy(0).save_pretrained(tmp_path / "registered")
    path = tmp_path / "registered/model.safetensors"
    before = path.read_bytes()
    served = Served(
        AutoModelForCausalLM.from_pretrained(tmp_path / "registered", use_safetensors=True).eval(), tmp_path
    )
    served.saved(policy(1), "new")
    served.push("new", "v1")
    assert np.array_equal(served.answer()[0], logits_of(policy(1)))
    assert path.read_bytes() == before
    served.close()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tied_weights_may_come_under_one_of_their_names(tmp_path, kind):
    """Or under both with the same numbers; other numbers are refused."""
    served, new = Served(policy(0, tied=True, kind=kind), tmp_path), policy(1, tied=True, kind=kind)
    served.saved(new, "new")
    tensors = load_file(tmp_path / "new/model.safetensors")
    embedding = "model.embed_tokens.weight" if kind == "llama" else "transformer.wte.weight"
    assert "lm_head.weight" not in tensors
    served.push("new", "one")
    assert np.array_equal(served.answer()[0], logits_of(new))
    both = {**tensors, "lm_head.weight": tensors[embedding].clone()}
    save_file(both, tmp_path / "both.safetensors")
    served.push("both.safetensors", "both")
    head = {name: tensor for name, tensor in both.items() if name != embedding}
    save_file(head, tmp_path / "head.safetensors")
    served.push("head.safetensors", "head")
    assert np.array_equal(served.answer()[0], logits_of(new))
    both["lm_head.weight"][0, 0] += 1.0
    save_file(both, tmp_path / "other.safetensors")
    with pytest.raises(WeightsRefusedError, match="which are one tensor of the policy"):
        served.push("other.safetensors", "other")
    served.close()


@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("target", ["float32", "bfloat16", "float16"])
def test_types_are_cast_and_the_cast_is_told(tmp_path, source, target):
    """The numbers are those that torch gives for the cast."""
    served = Served(policy(0, dtype=getattr(torch, target)), tmp_path)
    new = policy(1, dtype=getattr(torch, source))
    report = served.push(served.saved(new, "new"), "v1")
    assert report.cast_from == (None if source == target else source)
    for name, tensor in new.to(getattr(torch, target)).state_dict().items():
        assert torch.equal(served.model.state_dict()[name], tensor)
    served.close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda one: one.pop("model.norm.weight"), "got no 'model.norm.weight', one of 1 tensors"),
        (lambda one: one.update(extra=torch.zeros(1)), "does not have, among them 'extra'"),
        (lambda one: one.update({"model.norm.weight": torch.zeros(31)}), r"shape \(31,\); expected \(32,\)"),
        (
            lambda one: one.update({"model.norm.weight": torch.zeros(32).long()}),
            "of int64, where the policy has float32",
        ),
        (lambda one: one.update({"model.norm.weight": torch.zeros(32).double()}), "of float64, where the policy"),
        (lambda one: one["model.norm.weight"].fill_(float("nan")), "in 'model.norm.weight' that are not finite"),
        (lambda one: one["lm_head.weight"][63].fill_(-float("inf")), "in 'lm_head.weight' that are not finite"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(served, change, why):
    """Everything is verified before the first number is copied; the version may come again as it should."""
    before = served.answer()[0]
    with pytest.raises(WeightsRefusedError, match=why):
        served.push(changed(served, change), "v1")
    scores, version = served.answer()
    assert version == "loaded"
    assert np.array_equal(scores, before)
    assert served.changes == []
    assert served.push("new", "v1").weight_version == "v1"


def test_a_refused_push_fails_those_who_wait_for_it(served):
    """At once and not at their deadlines; those who wait for other weights have them."""
    for version in ("v1", "v2"):
        served.versions.announce(version)
    waiting, other = (served.batcher.submit(1, pin=WeightPin(version)) for version in ("v1", "v2"))
    with pytest.raises(WeightsRefusedError):
        served.push(changed(served, lambda one: one.pop("model.norm.weight")), "v1")
    with pytest.raises(WeightVersionUnknownError, match="pushed and refused"):
        waiting.result(PATIENCE_S)
    served.push("new", "v2")
    assert other.result(PATIENCE_S).weight_version == "v2"


def test_numbers_that_become_infinite_by_the_cast_are_refused(tmp_path):
    """A number that float32 has may be beyond float16; one that rounds to the greatest is none of these."""
    served = Served(policy(0, dtype=torch.float16), tmp_path)
    served.saved(policy(1), "new")
    with pytest.raises(WeightsRefusedError, match="too large for float16"):
        served.push(changed(served, lambda one: one["lm_head.weight"][0].fill_(65520.0)), "v1")
    served.push(changed(served, lambda one: one["lm_head.weight"][0].fill_(65519.0), "good"), "v1")
    assert served.model.lm_head.weight[0, 0] == 65504.0
    served.close()


@pytest.mark.parametrize("place", [0, 1, -1])
def test_every_piece_of_a_tensor_is_looked_at(tmp_path, place):
    """Tensors are read in pieces; a number that is not finite is found in each."""
    n = PIECE_BYTES // 4 + 7
    served = Served(torch.nn.Linear(n, 1, bias=False), tmp_path)
    weight = torch.arange(n, dtype=torch.float32)[None]
    save_file({"weight": weight}, tmp_path / "good.safetensors")
    weight[0, place or n // 2] = float("nan")
    save_file({"weight": weight}, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsRefusedError, match="not finite"):
        served.push("bad.safetensors", "v1")
    served.live._changed = lambda: None
    served.push("good.safetensors", "v1")
    assert torch.equal(served.model.weight[0], torch.arange(n, dtype=torch.float32))
    served.close()


def test_tensors_that_are_not_in_a_row_in_memory_get_their_numbers(tmp_path):
    """A transposed parameter is written as a whole."""
    model = torch.nn.Linear(3, 4, bias=False)
    model.weight = torch.nn.Parameter(torch.zeros(3, 4).t())
    served = Served(model, tmp_path)
    served.live._changed = lambda: None
    save_file({"weight": torch.arange(12.0).reshape(4, 3)}, tmp_path / "new.safetensors")
    served.push("new.safetensors", "v1")
    assert torch.equal(model.weight, torch.arange(12.0).reshape(4, 3))
    served.close()


def test_whole_numbers_and_buffers_are_taken_as_they_are(tmp_path):
    """A buffer that is saved is part of the weights; there is nothing to be cast in whole numbers."""
    served = Served(torch.nn.BatchNorm1d(3), tmp_path)
    served.live._changed = lambda: None
    new = torch.nn.BatchNorm1d(3)
    new.num_batches_tracked.fill_(7)
    save_file(dict(new.state_dict()), tmp_path / "new.safetensors")
    served.push("new.safetensors", "v1")
    assert served.model.num_batches_tracked == 7
    demand_finite("x", torch.tensor([7]), torch.int64)
    served.close()


def test_the_same_weights_again_are_nothing_to_do(served):
    """By whatever files they come: a name stands for content, and other content under it is refused."""
    served.push("new", "v1")
    again = served.push("new/model.safetensors", "v1")
    assert (again.skipped, again.swap_s) == (True, 0.0)
    tensors = load_file(served.root / "new/model.safetensors")
    half = len(tensors) // 2
    (served.root / "split").mkdir()
    for number, part in enumerate((sorted(tensors)[:half], sorted(tensors)[half:])):
        save_file({name: tensors[name] for name in part}, served.root / f"split/{number}.safetensors")
    assert served.push("split", "v1").skipped
    served.saved(policy(2), "other")
    for version in ("v1", "loaded"):
        with pytest.raises(WeightVersionMismatchError, match="expected a name that was never used"):
            served.push("other", version)
    assert np.array_equal(served.answer()[0], logits_of(policy(1)))
    served.push("other", "v2")
    assert not served.push("new", "v1").skipped
    assert np.array_equal(served.answer()[0], logits_of(policy(1)))
    assert served.versions.state().n_swaps == 3


def test_shards_of_an_upload_become_the_weights_and_go(served, tmp_path):
    """What was spooled is removed once it is taken, and once it is refused."""
    uploads = WeightUploads(tmp_path / "spool", max_bytes=10**7, max_shard_bytes=10**6, ttl_s=60.0)
    tensors = load_file(served.root / "new/model.safetensors")
    for version, names in (("v1", sorted(tensors)), ("v2", sorted(tensors)[:-1])):
        progress = None
        for shard, name in enumerate(names):
            save_file({name: tensors[name]}, tmp_path / "shard")
            content = (tmp_path / "shard").read_bytes()
            place = ShardPlace("policy", version, shard, len(names), checksum(content))
            writer = uploads.begin(place, served.versions.current)
            writer.write(content)
            progress = writer.finish()
        outcome = served.live.replace(progress.staged)
        if version == "v1":
            assert outcome.result(PATIENCE_S).n_bytes == sum(tensor.nbytes for tensor in tensors.values())
        else:
            with pytest.raises(WeightsRefusedError, match="got no"):
                outcome.result(PATIENCE_S)
        assert [path for path in (tmp_path / "spool").rglob("*") if path.suffix == ".safetensors"] == []
    assert np.array_equal(served.answer()[0], logits_of(policy(1)))
    uploads.close()


def test_a_file_that_changes_between_the_two_looks_is_refused(served, monkeypatch):
    """What was verified is what is copied."""
    inner = live_weights.digests_of

    def write(*args):
        found = inner(*args)
        with (served.root / "new/model.safetensors").open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"\0\0\0\0")
        return found

    monkeypatch.setattr(live_weights, "digests_of", write)
    with pytest.raises(WeightsRefusedError, match="changed while it was verified"):
        served.push("new", "v1")
    assert np.array_equal(served.answer()[0], logits_of(policy(0)))


@pytest.mark.parametrize("how", ["written", "cut", "renewal"])
def test_an_engine_whose_copy_fails_half_way_never_answers_again(served, monkeypatch, how):
    """A file that is written to or cut while it is copied, a renewal that fails: the engine stops, and says why."""
    served.saved(policy(2), "other")
    path, copied = served.root / "new/model.safetensors", []
    inner = live_weights.copy_values

    def copy(*args):
        inner(*args)
        copied.append(args)
        if len(copied) == 3:
            with path.open("r+b") as file:
                if how == "cut":
                    file.truncate(2000)
                else:
                    file.write(b"\1")

    def fail():
        raise RuntimeError("no")

    if how == "renewal":
        served.live._changed = fail
    else:
        monkeypatch.setattr(live_weights, "copy_values", copy)
    with pytest.raises(EngineStoppedError, match="failed half-way"):
        served.push("new", "v1")
    assert not served.batcher.is_alive
    with pytest.raises(EngineStoppedError, match="failed half-way"):
        served.batcher.submit(1)
    with pytest.raises(EngineStoppedError):
        served.push("other", "v2")


def test_a_file_that_cannot_be_read_is_a_failure_and_no_refusal(served, monkeypatch):
    """The disk is not the sender's fault."""

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(live_weights, "digests_of", fail)
    with pytest.raises(EngineFailedError, match="OSError"):
        served.push("new", "v1")
    assert served.answer()[1] == "loaded"


def test_a_closed_engine_takes_no_weights(served):
    """Nobody is left waiting."""
    staged = staged_from_path(served.root, "new", "v1")
    served.batcher.close(PATIENCE_S)
    with pytest.raises(EngineStoppedError):
        served.live.replace(staged).result(PATIENCE_S)
    served.live.close()
    with pytest.raises(EngineStoppedError):
        served.push("new", "v2")


def test_answers_are_of_one_set_of_weights_while_they_are_replaced(served):
    """200 works in flight, 20 pushes between two sets: each answer is exactly one set's, and names it."""
    served.saved(policy(2), "other")
    sets = {"loaded": policy(0), "new": policy(1), "other": policy(2)}
    expected = {name: hashlib.sha256(logits_of(model).tobytes()).digest() for name, model in sets.items()}
    served.versions.announce("new")
    served.versions.announce("other")
    pins = (WeightPin(), WeightPin("new"), WeightPin("other"))
    futures, outcomes = [], []
    for number in range(200):
        futures.append(served.batcher.submit_slices([1, 1, 1][: 1 + number % 3], pin=pins[number % 3]))
        if number % 10 == 0:
            name = ("new", "other")[number // 10 % 2]
            outcomes.append(served.live.replace(staged_from_path(served.root, name, name)))
    assert not any(outcome.result(PATIENCE_S).skipped for outcome in outcomes)
    served.push("new", "new")  # for works that were pinned to it when it had gone already
    seen = set()
    for number, future in enumerate(futures):
        answered = future.result(PATIENCE_S)
        if (wanted := pins[number % 3].version) is not None:
            assert answered.weight_version == wanted
        for part in np.split(answered.scores, 1 + number % 3):
            assert hashlib.sha256(part.tobytes()).digest() == expected[answered.weight_version]
        seen.add(answered.weight_version)
    assert {"new", "other"} <= seen


def test_memory_of_a_model_is_the_same_after_a_push(served):
    """No tensor is made beside those of the model."""
    other = same(served.model)
    served.push("new", "v1")
    assert {one.untyped_storage().nbytes() for one in served.model.parameters()} == {
        one.untyped_storage().nbytes() for one in other.parameters()
    }
