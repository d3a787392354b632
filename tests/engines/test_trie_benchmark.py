"""The benchmark of tries needs torch, transformers and the engines alone, and says what the page needs."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

from benchmarks.measure import Timing  # noqa: E402
from benchmarks.page import page  # noqa: E402
from benchmarks.trie_scoring import EXPECTED, KINDS, cells_of, main, owen, with_shares  # noqa: E402

ROOT = Path(__file__).parents[2]
BARE = """
import sys
sys.modules.update(dict.fromkeys(["hypothesis", "pydantic", "fastapi", "redis", "orjson"]))
import runpy
runpy.run_path("tests/benchmarks/trie_scoring.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a quick run writes, on a machine that has little."""
    out = tmp_path_factory.mktemp("trie") / "trie_scoring.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(("client", "service", "tests"))}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    subprocess.run(
        [sys.executable, "-c", BARE, "--quick", "--out", str(out)], check=True, cwd=ROOT, env=environment | threads
    )
    return json.loads(out.read_text(encoding="utf-8"))


def test_a_quick_run_has_every_figure(report):
    """Times with their spread, both peers, the ratio of tokens, versions and device."""
    assert [cell["kind"] for cell in report["cells"]] == ["exact 2^4", "Owen 4"]
    for cell in report["cells"]:
        assert cell["tokens_computed"] < cell["tokens_naive"]
        assert cell["token_ratio"] == cell["tokens_naive"] / cell["tokens_computed"]
        assert cell["largest_difference"] <= 1e-5
        for way in ("trie", "padded", "budget"):
            assert cell[way]["lower_quartile_us"] <= cell[way]["median_us"] <= cell[way]["upper_quartile_us"]
        assert cell["times_budget"]["of_medians"] > 0
    assert report["versions"]["torch"]
    assert report["device"]["processor"]
    assert report["device"]["accelerator"] is None
    assert (report["budget"], report["chunk"], report["batch"], report["dtype"]) == (4096, 256, 32, "float32")


def test_the_page_has_the_figures(report, tmp_path):
    """A table of its own, which says what was expected and where it was missed, and the share of a GPU's rate."""
    (tmp_path / "machine").mkdir()
    report["cells"][0] |= {"expected_times_padded": 10**6}
    report["cells"][1] |= {"sampled": 4}
    (tmp_path / "machine" / "trie_scoring.json").write_text(json.dumps(report), encoding="utf-8")
    made = page(tmp_path)
    assert "on a processor" in made
    assert "| tiny | exact 2^4: 16 | 16 | 3.8× |" in made
    assert "≥ 1000000×, missed |" in made
    assert ")* |" in made
    gpu = {"name": "NVIDIA H200", "assumed_bf16_flops": 1e15, "measured_bf16_flops": None}
    trie = Timing(1000.0, 900.0, 1100.0, 3, 1)
    shared = [with_shares({**cell, "flops": 1e11, "trie": trie}, gpu) for cell in report["cells"]]
    cells = [{**cell, "trie": asdict(trie)} for cell in shared]
    on_gpu = {**report, "device": {**report["device"], "accelerator": gpu}, "cells": cells}
    (tmp_path / "machine" / "trie_scoring_cuda.json").write_text(json.dumps(on_gpu), encoding="utf-8")
    made = page(tmp_path)
    assert "on a GPU" in made
    assert "| 10%, unknown |" in made
    assert "assumed to be 1,000 TFLOP/s (datasheet, dense)" in made
    assert "*NVIDIA H200, " in made


def test_the_full_run_has_the_cells_that_are_asked_for():
    """Three kinds and three prompts of the small shape and one cell of the larger; larger ones on a GPU alone."""

    def cells(device):
        options = type("Options", (), {"quick": False, "cell": None, "device": device})
        return cells_of(options)

    small = [cell for cell in cells("cpu") if cell.size == "9 M"]
    assert {(cell.kind, cell.prompt) for cell in small} >= EXPECTED.keys()
    assert len(small) == 9
    assert [(cell.size, cell.kind) for cell in cells("cpu")[9:]] == [("34 M", "Owen 16")]
    assert {cell.size for cell in cells("cuda")} == {"34 M", "160 M", "1.7 B", "8 B"}
    one = cells_of(type("Options", (), {"quick": False, "cell": "9 M,Owen 16,256", "device": "cpu"}))
    assert [(cell.size, cell.kind, cell.prompt, cell.sampled) for cell in one] == [("9 M", "Owen 16", 256, 1)]
    assert len(owen(16)) == 172
    assert {"exact 2^8", "Owen 16", "Owen 32"} < KINDS.keys()
    assert callable(main)
