import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from creditd.engines.errors import EngineOverloadedError, WeightsRefusedError, WeightVersionMismatchError
from creditd.engines.weight_files import SwapReport
from creditd.engines.weight_uploads import MOST_OPEN, ShardPlace, WeightUploads
from engines.tensor_files import checksum, numbers, packed, with_header

SHARDS = [packed({f"{shard}": numbers(shard)}) for shard in range(3)]
REPORT = SwapReport("v2", 1, 1, None, 0.0, 0.0, skipped=False)


class Spool:
    """Uploads with a clock that tests set."""

    def __init__(self, folder, **limits):
        self.now, self.folder = 0.0, folder
        given = {"max_bytes": 4096, "max_shard_bytes": 1024, "ttl_s": 600.0, **limits}
        self.uploads = WeightUploads(folder, clock=lambda: self.now, **given)

    def begin(self, content, shard=0, shards=3, *, version="v2", current="v1", model="policy", **choices):
        """A writer for these bytes."""
        digest = choices.pop("checksum", checksum(content))
        return self.uploads.begin(ShardPlace(model, version, shard, shards, digest, **choices), current)

    def send(self, content, shard=0, shards=3, *, piece=100, **choices):
        """Send these bytes in pieces, as a route does; the progress."""
        writer = self.begin(content, shard, shards, **choices)
        try:
            for start in range(0, len(content), piece):
                writer.write(content[start : start + piece])
            return writer.finish()
        finally:
            writer.abort()

    def files(self):
        """All files that hold bytes of uploads."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name != "lock")


@pytest.fixture
def spool(tmp_path):
    made = Spool(tmp_path / "spool")
    yield made
    made.uploads.close()
    assert list(made.folder.iterdir()) == []


def test_shards_come_in_any_order_and_twice(spool):
    """What is missing is told; the last one starts, and those who send a shard again wait for the same outcome."""
    first = spool.send(SHARDS[2], 2)
    assert (first.missing, first.n_bytes, first.staged, first.starts) == ((0, 1), len(SHARDS[2]), None, False)
    assert spool.send(SHARDS[2], 2).missing == (0, 1)
    assert spool.send(SHARDS[0], 0).missing == (1,)
    last = spool.send(SHARDS[1], 1)
    assert (last.missing, last.starts, last.n_bytes) == ((), True, sum(map(len, SHARDS)))
    assert set(last.staged.tensors) == {"0", "1", "2"}
    again = spool.send(SHARDS[1], 1)
    assert (again.missing, again.starts) == ((), False)
    assert again.staged is last.staged
    with last.staged.opened() as descriptors:
        for name, (file, tensor) in last.staged.tensors.items():
            content = os.pread(descriptors[file], tensor.n_bytes, tensor.start)
            assert content == numbers(int(name)).tobytes()
    last.staged.release()
    assert spool.files() == []
    assert spool.send(SHARDS[1], 1).staged is last.staged
    assert spool.files() == []


def test_weights_may_come_again_once_they_are_over(spool):
    """While they are current their shards change nothing; refused or replaced by others they come anew."""
    done = spool.send(SHARDS[0], shards=1).staged
    done.release()
    done.outcome.set_result(REPORT)
    assert not spool.send(SHARDS[0], shards=1, current="v2").starts
    anew = spool.send(SHARDS[0], shards=1, current="v3")
    assert anew.starts
    anew.staged.release()
    anew.staged.outcome.set_exception(WeightsRefusedError("no"))
    other = spool.send(SHARDS[1], shards=1)
    assert other.starts
    other.staged.release()


def test_an_adapter_brings_its_configuration(spool):
    """It is in the metadata of the first shard; without it the upload is refused and gone."""
    config = {"peft_type": "LORA", "r": 4}
    content = packed({"x": numbers()}, {"adapter_config": json.dumps(config)})
    staged = spool.send(content, shards=1, adapter=True, merged=True).staged
    assert (staged.adapter, staged.merged) == (config, True)
    for metadata in (None, {"adapter_config": "["}, {"adapter_config": "3"}):
        with pytest.raises(WeightsRefusedError, match="adapter_config"):
            spool.send(packed({"x": numbers()}, metadata), shards=1, adapter=True, version="v3")
    staged.release()
    assert spool.files() == []


@pytest.mark.parametrize(
    ("content", "choices", "why"),
    [
        (SHARDS[0], {"checksum": "0" * 32}, "expected the one that was sent with them"),
        (SHARDS[0], {"checksum": "0" * 31}, "checksum of 31 characters"),
        (SHARDS[0], {"checksum": "G" * 32}, "checksum of 32 characters"),
        (SHARDS[0], {"shard": 3}, "got shard 3 of 3"),
        (SHARDS[0], {"shard": -1}, "got shard -1 of 3"),
        (SHARDS[0], {"shards": 0}, "got shard 0 of 0"),
        (SHARDS[0], {"shards": 10_001}, "at most 10000"),
        (SHARDS[0], {"version": ""}, "weight_version of 0 characters"),
        (SHARDS[0][:-1], {}, "it is cut or has a tail"),
        (b"", {}, "no bytes"),
        (b"x" * 50, {}, "expected a whole safetensors file"),
        (with_header("[" * 900, b""), {}, "no JSON"),
        (bytes(1025), {}, "more than 1024 bytes"),
    ],
)
def test_a_shard_that_is_wrong_leaves_nothing(spool, content, choices, why):
    """It is refused by itself, its bytes are removed, and the right one may follow."""
    with pytest.raises(WeightsRefusedError, match=why):
        spool.send(content, **choices)
    assert spool.files() == []
    assert spool.send(SHARDS[0]).missing == (1, 2)


def test_a_shard_of_other_weights_is_refused(spool):
    """Other bytes for a place that is taken, other numbers of shards, the same tensor in two shards."""
    spool.send(SHARDS[0])
    with pytest.raises(WeightsRefusedError, match="other bytes for shard 0"):
        spool.send(SHARDS[1])
    for choices in ({"shards": 2}, {"adapter": True}, {"merged": True}):
        with pytest.raises(WeightsRefusedError, match="as the upload of this version began"):
            spool.send(SHARDS[1], 1, **choices)
    spool.send(SHARDS[1], 1)
    with pytest.raises(WeightsRefusedError, match="got '0' in shard 0 and in shard 2"):
        spool.send(SHARDS[0], 2)
    assert spool.files() == []
    assert spool.send(SHARDS[0]).missing == (1, 2)


def test_models_and_versions_have_uploads_of_their_own(spool):
    """A name of a model or a version is never a path."""
    for model, version in (("a/../../b", "../../x"), ("a", "/etc/x"), ("b", ".")):
        assert spool.send(SHARDS[0], model=model, version=version).missing == (1, 2)
    assert len(spool.files()) == 3
    assert all(path.resolve().is_relative_to(spool.folder.resolve()) for path in spool.files())


def test_all_weights_together_are_bounded(tmp_path):
    """What is being written counts as well; a shard that comes again stands in its own place."""
    spool = Spool(tmp_path, max_bytes=2 * len(SHARDS[0]) + 50)
    spool.send(SHARDS[0])
    spool.send(SHARDS[1], 1)
    with pytest.raises(WeightsRefusedError, match="got weights of more than"):
        spool.send(SHARDS[2], 2)
    assert spool.send(SHARDS[1], 1).missing == (2,)
    writer, other = spool.begin(SHARDS[0], version="v3"), spool.begin(SHARDS[1], 1, version="v3")
    writer.write(SHARDS[0])
    other.write(SHARDS[1][:-10])
    third = spool.begin(SHARDS[2], 2, version="v3")
    with pytest.raises(WeightsRefusedError, match="got weights of more than"):
        third.write(SHARDS[2])
    for one in (writer, other, third):
        one.abort()
    spool.uploads.close()


def test_a_name_of_complete_weights_is_not_for_others(spool):
    """While they are taken, or current, other bytes under their name are no shard of theirs: the name is used."""
    assert spool.send(SHARDS[0], shards=1).starts
    with pytest.raises(WeightVersionMismatchError, match="other bytes"):
        spool.send(SHARDS[1], shards=1)


def test_unfinished_uploads_expire(spool):
    """Each sign of life counts from anew; a writer whose upload is gone is told so."""
    spool.send(SHARDS[0])
    writer = spool.begin(SHARDS[1], 1)
    for _ in range(3):
        spool.now += 500.0
        writer.write(b"x")
        spool.uploads.sweep()
    spool.now += 601.0
    spool.uploads.sweep()
    with pytest.raises(WeightsRefusedError, match="was dropped"):
        writer.write(b"x")
    writer.abort()
    assert spool.files() == []
    assert spool.send(SHARDS[0]).missing == (1, 2)


def test_too_many_unfinished_uploads_push_out_the_oldest(spool):
    """A trainer that begins again and again fills no disk."""
    for number in range(MOST_OPEN + 3):
        spool.send(SHARDS[0], version=f"v{number}")
    assert len(spool.files()) == MOST_OPEN
    assert spool.send(SHARDS[1], 1, version="v10").missing == (2,)
    assert spool.send(SHARDS[1], 1, version="v0").missing == (0, 2)


class FullFile:
    """A file on a disk that is full."""

    def write(self, _piece):
        """Fail as a full disk does."""
        raise OSError(errno.ENOSPC, "full")

    def close(self):
        """Nothing to close."""


def test_a_full_disk_is_said_and_leaves_nothing(spool):
    """The sender may come back: it is the service that has no room."""
    writer = spool.begin(SHARDS[0])
    writer._file = FullFile()
    with pytest.raises(EngineOverloadedError, match="No space left on device") as refusal:
        writer.write(SHARDS[0])
    writer.abort()
    assert refusal.value.retry_after_s > 0
    assert spool.files() == []
    assert spool.send(SHARDS[0]).missing == (1, 2)


def test_a_real_full_disk_is_said_as_well(spool):
    """The same through a device that is always full."""
    writer = spool.begin(SHARDS[0])
    writer.path.symlink_to("/dev/full")
    writer._file = writer.path.open("wb", buffering=0)
    with pytest.raises(EngineOverloadedError, match="No space left"):
        writer.write(SHARDS[0])
    writer.abort()
    assert spool.files() == []


def test_a_closed_spool_takes_nothing(tmp_path):
    """Closing removes all, and may come twice."""
    spool = Spool(tmp_path)
    writer = spool.begin(SHARDS[0])
    writer.write(SHARDS[0])
    spool.uploads.close()
    spool.uploads.close()
    with pytest.raises(WeightsRefusedError, match="was dropped"):
        writer.write(b"x")
    writer.abort()
    with pytest.raises(EngineOverloadedError, match="about to end"):
        spool.send(SHARDS[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_a_killed_process_left_is_removed(tmp_path):
    """The next process that starts removes it; what a living one has stays, and so does what is not a spool's."""
    code = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(tmp_path)!r})
        from creditd.engines.weight_uploads import ShardPlace, WeightUploads
        uploads = WeightUploads(Path({str(tmp_path)!r}), max_bytes=1000, max_shard_bytes=1000, ttl_s=600.0)
        uploads.begin(ShardPlace("policy", "v2", 0, 2, "0" * 32), "v1").write(b"abc")
        print("ready", flush=True)
        time.sleep(600)
        """
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            (tmp_path / "creditd-weights-of-somebody").mkdir()
            (tmp_path / "creditd-weights-link").symlink_to("/")
            living = Spool(tmp_path)
            (left,) = living.files()
            process.send_signal(signal.SIGKILL)
            process.wait()
        finally:
            process.kill()
    later = Spool(tmp_path)
    assert not left.exists()
    assert not left.parent.exists()
    assert living.send(SHARDS[0]).missing == (1, 2)
    assert (tmp_path / "creditd-weights-of-somebody").exists()
    assert (tmp_path / "creditd-weights-link").is_symlink()
    for one in (living, later):
        one.uploads.close()
