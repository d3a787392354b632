"""What a digest of a model's files depends on; files of any content will do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from creditd.engines.directories import weight_files
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.fake import FakeEngine
from creditd.engines.fingerprints import SourceFiles, digest_of
from creditd.engines.model_spec import ModelSpec, RemoteChoice
from server.model_services import fake, worth

SPEC = ModelSpec("rm", Path("rm"))
CLOCK = "{{ strftime_now('%d %b %Y') }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def of_one_file(folder):
    """A directory with all weights in one file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"rope_theta": 10000.0}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


def of_shards(folder):
    """A directory with weights in two files, and their index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"rope_theta": 10000.0}')
    for number, name in enumerate(SHARDS):
        (folder / name).write_bytes(bytes([number]) * 100)
    weight_map = {"a": SHARDS[1], "b": SHARDS[0], "c": SHARDS[1]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def fingerprint(folder, *more):
    """Of a directory."""
    return SourceFiles.seen(folder, [*weight_files(SPEC, folder), *more]).fingerprint(SPEC)


def flipped(file, at=-1):
    """Change one bit."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("made", [of_one_file, of_shards])
def test_every_byte_counts_and_the_place_does_not(tmp_path, made):
    """One bit of weights, configuration or index is another digest; another directory and a link are the same one."""
    folder = made(tmp_path / "a")
    first = fingerprint(folder)
    assert len(first) == 32
    assert fingerprint(folder) == first
    elsewhere = shutil.copytree(folder, tmp_path / "deep" / "b")
    assert fingerprint(elsewhere) == first
    (tmp_path / "link").symlink_to(folder)
    assert fingerprint(tmp_path / "link") == first
    files = weight_files(SPEC, elsewhere)
    assert {file.name for file in files} == {file.name for file in elsewhere.iterdir()}
    found = {first}
    for file in files:
        changed = shutil.copytree(folder, tmp_path / f"changed {file.name}")
        if file.suffix == ".json":
            (changed / file.name).write_text(file.read_text() + " ")
        else:
            flipped(changed / file.name, at=0)
        found.add(fingerprint(changed))
    assert len(found) == 1 + len(files)


def test_files_that_nothing_is_loaded_from_do_not_count(tmp_path):
    """Beside one file the shards are left alone; beside an index other files are; notes never count."""
    folder = of_one_file(tmp_path / "a")
    first = fingerprint(folder)
    (folder / "README.md").write_text("notes")
    (folder / SHARDS[0]).write_bytes(b"x")
    assert fingerprint(folder) == first
    folder = of_shards(tmp_path / "b")
    first = fingerprint(folder)
    (folder / "consolidated.safetensors").write_bytes(b"x")
    assert fingerprint(folder) == first


def test_an_adapter_counts(tmp_path):
    """Where peft is installed it is loaded on top of the weights."""
    folder = of_one_file(tmp_path / "a")
    found = {fingerprint(folder)}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
        found.add(fingerprint(folder))
    assert len(found) == 3


def test_weights_that_the_configuration_names_are_those(tmp_path):
    """As transformers reads it, for one file and for an index; never outside the directory."""
    folder = of_one_file(tmp_path / "a")
    config = folder / "config.json"
    (folder / "other.safetensors").write_bytes(b"x")
    config.write_text('{"transformers_weights": "other.safetensors"}')
    assert [file.name for file in weight_files(SPEC, folder)] == ["config.json", "other.safetensors"]
    (folder / "o.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "other.safetensors"}}))
    config.write_text('{"transformers_weights": "o.safetensors.index.json"}')
    assert [file.name for file in weight_files(SPEC, folder)][1:] == ["o.safetensors.index.json", "other.safetensors"]
    for outside in ("../other.safetensors", "/other.safetensors"):
        config.write_text(json.dumps({"transformers_weights": outside}))
        with pytest.raises(ModelUnsuitableError, match="leads outside its directory"):
            weight_files(SPEC, folder)
    config.write_text('{"transformers_weights": "gone.safetensors"}')
    assert {file.name for file in weight_files(SPEC, folder)} == {
        "config.json", "model.safetensors", "other.safetensors"
    }  # fmt: skip


def test_names_and_contents_cannot_be_confused(tmp_path):
    """What is a name and what is content, and where a file ends, is part of the digest; so is an empty file."""

    def digest(**files):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return digest_of(folder, folder.iterdir())

    assert len({digest(a=b"bc"), digest(ab=b"c"), digest(a=b"b", c=b""), digest(a=b"", c=b"b"), digest(a=b"b")}) == 5
    assert digest(a=b"1", b=b"2") == digest(b=b"2", a=b"1") != digest(a=b"2", b=b"1")
    if sys.platform == "linux":
        folder = tmp_path / "odd"
        folder.mkdir()
        for name in (b"\xff", b"\xfe", b"a\nb"):
            Path(os.fsdecode(bytes(folder) + b"/" + name)).write_bytes(name)
        files = sorted(folder.iterdir())
        assert digest_of(folder, files) == digest_of(folder, reversed(files)) != digest_of(folder, files[1:])


def test_large_files_are_read_in_pieces(tmp_path):
    """Every byte of every piece counts, wherever pieces end; more pieces than threads are no matter."""
    file = tmp_path / "a"
    content = os.urandom(100)
    file.write_bytes(content)
    first = digest_of(tmp_path, [file], piece_bytes=10)
    found = {first}
    for at in range(100):
        flipped(file, at)
        found.add(digest_of(tmp_path, [file], piece_bytes=10))
        flipped(file, at)
    file.write_bytes(content + b"\0")
    found.add(digest_of(tmp_path, [file], piece_bytes=10))
    assert len(found) == 102
    # One block is 4 MiB: a file of several, with a rest.
    file.write_bytes(bytes(9 << 20) + b"\1")
    long = digest_of(tmp_path, [file])
    flipped(file)
    assert digest_of(tmp_path, [file]) != long


def test_a_file_that_changes_while_a_model_is_loaded_is_refused(tmp_path):
    """Nobody can say whether the old bytes or the new ones were loaded."""
    folder = of_shards(tmp_path / "a")
    for name, at in ((SHARDS[1], 5), ("config.json", 5)):
        sources = SourceFiles.seen(folder, weight_files(SPEC, folder))
        sources.fingerprint(SPEC)
        (folder / name).write_bytes(bytes(at))
        with pytest.raises(
            ModelUnsuitableError, match=f"^model rm: {name} changed while it was loaded; expected a dir"
        ):
            sources.fingerprint(SPEC)
        shutil.rmtree(folder)
        of_shards(folder)


def test_what_is_remembered_without_being_registered():
    """A local model is; a remote one by its revision alone; a template that reads the clock makes no lasting text."""
    far = RemoteChoice("http://127.0.0.1:8000", model="m")
    assert SPEC.is_remembered()
    assert SPEC.is_remembered("{{ messages }}")
    assert not SPEC.is_remembered(CLOCK)
    assert not ModelSpec("rm", remote=far).is_remembered()
    assert ModelSpec("rm", remote=far, revision="1").is_remembered()
    assert not ModelSpec("rm", remote=far, revision="1").is_remembered(CLOCK)


def test_a_registration_decides_what_is_remembered():
    """Its operator can vouch for a template, not for weights without a name, and can have nothing remembered."""
    far = RemoteChoice("http://127.0.0.1:8000", model="m")
    assert ModelSpec("rm", Path("rm"), cache=True).is_remembered(CLOCK)
    assert not ModelSpec("rm", Path("rm"), cache=False).is_remembered()
    assert not ModelSpec("rm", remote=far, revision="1", cache=False).is_remembered()
    assert ModelSpec("rm", remote=far, revision="1", cache=True).is_remembered()
    assert not ModelSpec("rm", remote=far, cache=False).is_remembered()
    with pytest.raises(ValueError, match="a remote model is remembered by its revision: expected one"):
        ModelSpec("rm", remote=far, cache=True)


def test_a_remote_engine_is_remembered_by_its_revision(server, engine_of):
    """The revision is part of its identity; what rounds there is not known."""
    unnamed, named, never = engine_of(server), engine_of(server, revision="1"), engine_of(server, cache=False)
    assert [engine.is_remembered for engine in (unnamed, named, never)] == [False, True, False]
    assert [engine.status().is_remembered for engine in (unnamed, named, never)] == [False, True, False]
    assert not engine_of(server, revision="1", chat_template=CLOCK).is_remembered
    assert len({engine.identity for engine in (unnamed, named, engine_of(server, revision="2"))}) == 3
    assert (named.numerics, named.status().fingerprint) == ("remote", None)


class Worth:
    """A reward that is no function."""

    def __call__(self, prompt, text):
        """The worth of a text."""
        return worth(prompt, text)


def test_a_fake_engine_is_the_same_in_every_process():
    """Its identity is the name of its function, not where that lies in memory."""
    asked = "from server.model_services import fake; engine = fake(); print(engine.identity, engine.numerics)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    said = {
        subprocess.run(
            [sys.executable, "-c", asked], env={**environment, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    engine = fake()
    assert said == {f"{engine.identity} {engine.numerics}\n".encode()}
    assert "worth" in engine.identity
    others = [fake("other"), fake(score=lambda *_: 0.0), fake(revision="2"), FakeEngine(Worth(), SPEC)]
    assert len({engine.identity, *(other.identity for other in others)}) == 5
    assert "0x" not in "".join(other.identity for other in others)
    off = fake(cache=False)
    assert (engine.is_remembered, off.is_remembered, off.status().is_remembered) == (True, False, False)
    for one in (engine, off, *others):
        one.close()
