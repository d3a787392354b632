"""What identities of real models depend on: everything that decides their numbers, and nothing else."""

import json
import shutil
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402
from transformers import CTRLTokenizer  # noqa: E402

from creditd.engines.chat import hash_of_tokenizer  # noqa: E402
from creditd.engines.embedding_engine import EmbeddingEngine  # noqa: E402
from creditd.engines.model_spec import HeadChoice, ModelSpec  # noqa: E402
from creditd.engines.reward_engine import RewardEngine  # noqa: E402
from engines.architectures import made  # noqa: E402
from engines.encoders import saved_encoder, with_modules, written  # noqa: E402
from engines.saved import saved, tokenizer  # noqa: E402

CLOCK = "{{ strftime_now('%d') }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def sharded(folder):
    """A reward model in several files."""
    made("llama").save_pretrained(folder, max_shard_size="20KB")
    tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def sentences(folder):
    """An embedding model with the files of sentence-transformers."""
    saved_encoder(folder)
    with_modules(folder)
    written(folder / "sentence_bert_config.json", {"max_seq_length": 50, "do_lower_case": False})


def identity(folder, *, name="m", **spec):
    """Of the engine of a directory."""
    kind = "embedding" if (folder / "modules.json").exists() else "reward"
    engine = EmbeddingEngine if kind == "embedding" else RewardEngine
    with closing(engine.load(ModelSpec(name, Path(folder.name), kind=kind, **spec), folder.parent)) as loaded:
        return loaded.identity


def flipped(file):
    """Change the last bit of the last weight, which is a small change of a score."""
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)


def spaced(file):
    """A space more in a file of settings."""
    file.write_text(file.read_text() + " ")


@pytest.mark.parametrize("written_by", [saved, sharded, sentences])
def test_identity_is_that_of_the_files(tmp_path, written_by):
    """Equal files are one identity wherever they lie and whatever they are called; one changed bit is another one."""
    folder = tmp_path / "original"
    written_by(folder)
    first = identity(folder)
    assert identity(folder, name="other") == first
    assert identity(shutil.copytree(folder, tmp_path / "deep" / "elsewhere")) == first
    deciding = [
        *(file for file in folder.glob("*.safetensors")),
        *(
            folder / name
            for name in ("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
        ),
    ]
    found = {first}
    for number, file in enumerate(file for file in deciding if file.exists()):
        changed = shutil.copytree(folder, tmp_path / f"changed {number}")
        (flipped if file.suffix == ".safetensors" else spaced)(changed / file.relative_to(folder))
        found.add(identity(changed))
    assert len(found) == 2 + number


def test_one_file_and_shards_of_the_same_weights_both_have_a_fingerprint(tmp_path):
    """It is of the files: the same weights in other files are scored alike, and are another identity."""
    saved(tmp_path / "one")
    sharded(tmp_path / "several")
    with ExitStack() as stack:
        one, several = (
            stack.enter_context(closing(RewardEngine.load(ModelSpec("m", Path(name)), tmp_path)))
            for name in ("one", "several")
        )
        assert len({one.status().fingerprint, several.status().fingerprint}) == 2
        assert one.status().fingerprint in one.identity
        assert several.status().fingerprint in several.identity


def test_what_is_registered_and_decides_scores_is_in_the_identity(tmp_path):
    """Revision, type, head, template, attention and length are; sizes of batches and what is remembered are not."""
    folder = tmp_path / "rm"
    saved(folder, num_labels=2)
    base = identity(folder, head=HeadChoice(index=0))
    others = [
        identity(folder, **{"head": HeadChoice(index=0), **spec})
        for spec in (
            {"revision": "2"},
            {"dtype": "bfloat16"},
            {"head": HeadChoice(index=1)},
            {"chat_template": CLOCK},
            {"attention": "eager"},
            {"max_tokens": 12},
        )
    ]
    assert len({base, *others}) == 7
    assert identity(folder, head=HeadChoice(index=0), batch_tokens=512, cache=False) == base


def test_last_bits_are_told_apart(tmp_path):
    """Sizes of passes, types, attention and threads decide rounding; the same registration is the same."""
    saved(tmp_path / "rm")

    def numerics(**spec):
        with closing(RewardEngine.load(ModelSpec("m", Path("rm"), **spec), tmp_path)) as engine:
            return engine.numerics

    base = numerics()
    assert numerics() == base
    assert torch.__version__ in base
    others = [numerics(chunk_tokens=64), numerics(batch_tokens=512), numerics(dtype="bfloat16"),
              numerics(attention="eager")]  # fmt: skip
    n_threads = torch.get_num_threads()
    torch.set_num_threads(n_threads + 1)
    try:
        others.append(numerics())
    finally:
        torch.set_num_threads(n_threads)
    assert len({base, *others}) == 6
    sentences(tmp_path / "em")
    spec = ModelSpec("em", Path("em"), kind="embedding")
    with closing(EmbeddingEngine.load(spec, tmp_path)) as engine:
        assert (engine.is_remembered, engine.status().is_remembered) == (True, True)
        assert "batches" in engine.numerics


def test_a_template_that_reads_the_clock_is_not_remembered(tmp_path):
    """The same messages are another text tomorrow, unless its operator knows better."""
    saved(tmp_path / "rm", template=CLOCK)
    for cache, expected in ((None, False), (True, True), (False, False)):
        with closing(RewardEngine.load(ModelSpec("m", Path("rm"), cache=cache), tmp_path)) as engine:
            assert (engine.is_remembered, engine.status().is_remembered) == (expected, expected)


def test_roles_of_special_tokens_are_part_of_a_tokenizer():
    """A template may write them by their roles."""
    swapped = tokenizer()
    swapped.bos_token, swapped.eos_token = "<eos>", "<bos>"
    assert hash_of_tokenizer(swapped, None) != hash_of_tokenizer(tokenizer(), None)


def test_tokenizers_in_python_are_told_apart_by_their_files(tmp_path):
    """Two that have one vocabulary and cut words differently are two."""
    hashes = []
    for name, merges in (("a", "#version\na b\n"), ("b", "#version\na b</w>\n"), ("c", "#version\na b\n")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "vocab.json").write_text(json.dumps({"<unk>": 0, "a@@": 1, "b": 2, "ab": 3}))
        (folder / "merges.txt").write_text(merges)
        hashes.append(hash_of_tokenizer(CTRLTokenizer.from_pretrained(folder), None))
    assert hashes[0] == hashes[2] != hashes[1]
