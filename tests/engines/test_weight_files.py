import json
import os

import numpy as np
import pytest

from creditd.engines import safetensors_header
from creditd.engines.errors import WeightsRefusedError
from creditd.engines.fingerprints import digest_of
from creditd.engines.safetensors_header import MOST_HEADER_BYTES, read_header
from creditd.engines.weight_files import checked_version, staged_from_path
from engines.tensor_files import numbers, packed, with_header

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def header_of(tmp_path, content):
    """What is read of a file with these bytes."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        return read_header(file.fileno(), "file")


def test_a_whole_file_is_read(tmp_path):
    """Names, types, shapes and places are those that were written; so is the metadata."""
    arrays = {"a": numbers(), "b": np.arange(3), "c": np.float32(1.0).reshape(()), "d": np.zeros((0, 4), np.float16)}
    content = packed(arrays, {"format": "pt"})
    found = header_of(tmp_path, content)
    assert found.metadata == {"format": "pt"}
    for name, array in arrays.items():
        tensor = found.tensors[name]
        assert tensor.shape == array.shape
        assert content[tensor.start : tensor.stop] == array.tobytes()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "0 bytes"),
        (b"\x00\x00", "expected a whole safetensors file"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "expected a whole safetensors file"),
        (with_header("{", b""), "no JSON"),
        (with_header("[]", b""), "no object"),
        (with_header("[" * 100_000, b""), "no JSON"),
        (with_header('{"a": 1' + "0" * 5000 + "}", b""), "no JSON"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00\xff\xfe", "no JSON"),
        (with_header(f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY)}}}', bytes(8)), "unique keys"),
        (with_header({"a": {**ENTRY, "dtype": "F8_E4M3"}}, bytes(8)), "'F8_E4M3' for the dtype of 'a'"),
        (with_header({"a": {**ENTRY, "dtype": ["F32"]}}, bytes(8)), "no text for the dtype"),
        (with_header({"a": {**ENTRY, "shape": [-2]}}, bytes(8)), "no shape"),
        (with_header({"a": {**ENTRY, "shape": [True, 2]}}, bytes(8)), "no shape"),
        (with_header({"a": {**ENTRY, "shape": [1] * 9}}, bytes(8)), "no shape"),
        (with_header({"a": {**ENTRY, "shape": [1 << 61, 1 << 61]}}, bytes(8)), "its shape and dtype have"),
        (with_header({"a": {**ENTRY, "data_offsets": [0]}}, bytes(8)), "no data_offsets"),
        (with_header({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8)), "-8 bytes for 'a'"),
        (with_header({"a": ENTRY}, bytes(7)), "it is cut or has a tail"),
        (with_header({"a": ENTRY}, bytes(9)), "it is cut or has a tail"),
        (with_header({"a": ENTRY, "b": ENTRY}, bytes(8)), "expected it at"),
        (with_header({"a": {**ENTRY, "data_offsets": [8, 16]}}, bytes(16)), "expected it at"),
        (with_header({"a": 3}, b""), "no object for 'a'"),
        (with_header({"": ENTRY}, bytes(8)), "name has 0 characters"),
        (with_header({"a" * 513: ENTRY}, bytes(8)), "name has 513 characters"),
        (with_header({"__metadata__": {"a": 1}}, b""), "other things than text"),
    ],
)
def test_a_file_that_does_not_add_up_is_refused(tmp_path, content, why):
    """A header is believed only where every byte of the file is one tensor's."""
    with pytest.raises(WeightsRefusedError, match=why):
        header_of(tmp_path, content)


def test_a_header_is_bounded_before_it_is_read(tmp_path, monkeypatch):
    """A file that says that its header is long is refused by its first eight bytes."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write((MOST_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(1 << 30)
    asked = []
    inner = os.pread
    monkeypatch.setattr(safetensors_header.os, "pread", lambda *place: asked.append(place[1]) or inner(*place))
    with path.open("rb") as file, pytest.raises(WeightsRefusedError, match="expected at most 16777216"):
        read_header(file.fileno(), "file")
    assert asked == [8]


def test_long_names_are_cut_in_messages(tmp_path):
    """What somebody put into a file is not echoed at length."""
    with pytest.raises(WeightsRefusedError) as refusal:
        header_of(tmp_path, with_header({"a" * 500: 3}, b""))
    assert len(str(refusal.value)) < 200


@pytest.fixture
def root(tmp_path):
    """A root with weights in one file, in two shards, and an adapter; and weights beside it."""
    root = tmp_path / "root"
    for name in ("one", "shards", "adapter", "empty"):
        (root / name).mkdir(parents=True)
    (root / "one/model.safetensors").write_bytes(packed({"a": numbers(0), "b": numbers(1)}))
    (root / "one/other.safetensors").write_bytes(packed({"z": numbers(0)}))
    for shard in range(2):
        (root / f"shards/model-{shard}.safetensors").write_bytes(packed({f"{shard}": numbers(shard)}))
    index = {"weight_map": {f"{shard}": f"model-{shard}.safetensors" for shard in range(2)}}
    (root / "shards/model.safetensors.index.json").write_text(json.dumps(index))
    (root / "adapter/adapter_model.safetensors").write_bytes(packed({"x": numbers(2)}))
    (root / "adapter/adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "outside.safetensors").write_bytes(packed({"a": numbers(0)}))
    return root


def test_weights_are_found_as_save_pretrained_writes_them(root):
    """One file, all shards that an index names, a file by itself, an adapter with its configuration."""
    one = staged_from_path(root, "one", "v1")
    assert (set(one.tensors), one.n_bytes, one.adapter, one.spool) == ({"a", "b"}, 96, None, None)
    assert set(staged_from_path(root, "shards", "v1").tensors) == {"0", "1"}
    assert set(staged_from_path(root, "one/other.safetensors", "v1").tensors) == {"z"}
    adapter = staged_from_path(root, "adapter", "v1", adapter=True, merged=True)
    assert (adapter.adapter, adapter.merged, set(adapter.tensors)) == ({"peft_type": "LORA"}, True, {"x"})
    one.release()
    assert (root / "one/model.safetensors").exists()


def test_what_is_below_the_root_by_a_link_is_below_it(root):
    """Links are followed to where they lead."""
    (root / "link").symlink_to(root / "one")
    assert set(staged_from_path(root, "link", "v1").tensors) == {"a", "b"}


@pytest.mark.parametrize(
    "path",
    [
        "../outside.safetensors",
        "one/../../outside.safetensors",
        "absolute",
        "leads-out",
        "folder-leads-out/outside.safetensors",
        "file-leads-out",
        "index-leads-out",
        "index-is-a-path",
        "loop",
        "nothing",
        "one/model.safetensors/x",
        "nul\0",
        "a" * 5000,
        "pipe.safetensors",
        "empty",
        "no-map",
        "json",
        "",
    ],
)
def test_nothing_outside_the_root_is_read(root, path):
    """No path, link or index leads out; a pipe is not waited for; no message has a path of the machine."""
    outside = root.parent / "outside.safetensors"
    (root / "leads-out").symlink_to(outside)
    (root / "folder-leads-out").symlink_to(root.parent)
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe.safetensors")
    for name, index in (
        ("index-leads-out", {"weight_map": {"a": "../../outside.safetensors"}}),
        ("index-is-a-path", {"weight_map": {"a": "/model.safetensors"}}),
        ("no-map", {"weight_map": [1]}),
        ("json", []),
        ("file-leads-out", None),
    ):
        (root / name).mkdir()
        if index is None:
            (root / name / "model.safetensors").symlink_to(outside)
        else:
            (root / name / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsRefusedError) as refusal:
        staged_from_path(root, str(outside) if path == "absolute" else path, "v1")
    assert str(root.parent) not in str(refusal.value)


def test_an_adapter_needs_its_directory_and_configuration(root):
    """A file alone does not say what it is; a configuration is an object of a bounded size."""
    with pytest.raises(WeightsRefusedError, match="expected one with adapter_config"):
        staged_from_path(root, "adapter/adapter_model.safetensors", "v1", adapter=True)
    for content, why in ((" " * 70_000, "expected at most 65536"), ("[]", "no object"), ("{", "no JSON")):
        (root / "adapter/adapter_config.json").write_text(content)
        with pytest.raises(WeightsRefusedError, match=why):
            staged_from_path(root, "adapter", "v1", adapter=True)
    (root / "adapter/adapter_config.json").unlink()
    with pytest.raises(WeightsRefusedError, match="leads to nothing"):
        staged_from_path(root, "adapter", "v1", adapter=True)


def test_a_tensor_stands_in_one_file(root):
    """Two files with the same name would leave open which of the two is meant."""
    (root / "shards/model-1.safetensors").write_bytes(packed({"0": numbers(1)}))
    with pytest.raises(WeightsRefusedError, match=r"got '0' in model-0.safetensors and in model-1.safetensors"):
        staged_from_path(root, "shards", "v1")


def test_a_checksum_is_that_of_all_files_that_are_read(root):
    """The digest is the one that a registered model's files have as well; another is refused."""
    folder = root / "shards"
    digest = digest_of(folder, sorted(folder.glob("*.safetensors")))
    assert staged_from_path(root, "shards", "v1", checksum=digest).n_bytes == 96
    with pytest.raises(WeightsRefusedError, match=digest):
        staged_from_path(root, "shards", "v1", checksum="0" * 32)
    adapter = root / "adapter"
    whole = digest_of(adapter, adapter.iterdir())
    staged_from_path(root, "adapter", "v1", adapter=True, checksum=whole)


def test_files_that_change_after_they_were_named_are_noticed(root):
    """Replaced, written to, gone: each is refused when the file is opened again."""
    path = root / "one/model.safetensors"
    content = path.read_bytes()
    staged = staged_from_path(root, "one", "v1")
    with staged.opened() as descriptors:
        staged.demand_unchanged(descriptors)
        (root / "new").write_bytes(content)
        (root / "new").replace(path)
        assert staged.is_unchanged(descriptors)  # what is open is the old file
    with pytest.raises(WeightsRefusedError, match="changed after it was named"), staged.opened():
        pass
    staged = staged_from_path(root, "one", "v1")
    with staged.opened() as descriptors:
        os.utime(path, ns=(1, 1))
        with pytest.raises(WeightsRefusedError, match="changed while it was verified"):
            staged.demand_unchanged(descriptors)
    path.unlink()
    with pytest.raises(WeightsRefusedError, match="cannot be opened"), staged.opened():
        pass


@pytest.mark.parametrize("version", ["", "a" * 257, "a\nb", "\x1b[1m"])
def test_a_version_is_a_short_printable_name(root, version):
    """Names go into logs and answers."""
    with pytest.raises(WeightsRefusedError, match="expected 1 to 256"):
        staged_from_path(root, "one", version)
    assert checked_version("RUN:40 ä") == "RUN:40 ä"


def test_an_outcome_is_not_cancelled_by_one_of_those_who_wait(root):
    """Others wait for it as well."""
    staged = staged_from_path(root, "one", "v1")
    assert not staged.outcome.cancel()
