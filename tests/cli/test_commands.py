"""The `creditd` command, run as a user runs it."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from creditd.cli.__main__ import main
from creditd.client import Client
from creditd.wire.versions import package_version
from services import running_service

pytestmark = pytest.mark.slow

RUN_LIMIT_S = 300


def run(*arguments, directory, stdin=None):
    """A finished `creditd` process."""
    return subprocess.run(
        [sys.executable, "-m", "creditd.cli", *arguments],
        cwd=directory,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )


def written(path):
    """The records of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def candidate_sets(n_sets, *, seed):
    """Sets as a training run writes them: eight responses to a prompt, 2 to 6 candidates with text and rewards."""
    draw = random.Random(seed)  # noqa: S311 - test data
    return [
        {
            "id": f"rollout-{number}",
            "group": f"prompt-{number // 8}",
            "candidates": [
                {"text": f"idea {draw.randrange(10**6)}", "reward": None if draw.random() < 0.01 else draw.random()}
                for _ in range(draw.randint(2, 6))
            ],
        }
        for number in range(n_sets)
    ]


def test_version_is_printed(tmp_path):
    """`creditd version` prints the version and nothing else."""
    finished = run("version", directory=tmp_path)
    assert (finished.returncode, finished.stdout) == (0, f"{package_version()}\n")


def test_a_missing_web_framework_is_said_with_the_line_that_installs_it(monkeypatch, capsys):
    """Without the extra, `creditd serve` names what is missing and the pip line."""
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith(("creditd.server", "creditd.cli.serve"))]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["serve"]) == 2
    assert "pip install 'creditd[service]'" in capsys.readouterr().err


@pytest.mark.slow
def test_ten_thousand_sets_go_through_and_rubbish_lines_do_not_stop_them(tmp_path):
    """10,000 sets and three bad lines: 10,000 answers in order, three errors by number, a progress bar."""
    sets = candidate_sets(10_000, seed=7)
    lines = [json.dumps(item) for item in sets]
    lines.insert(4_000, "this is not JSON")
    lines.insert(6_000, json.dumps({"candidates": [{"reward": "high"}]}))
    lines.insert(8_000, json.dumps({"id": "nan", "group": "prompt-900", "candidates": [{"reward": float("nan")}]}))
    (tmp_path / "sets.jsonl").write_text("\n".join(lines) + "\n")
    finished = run("shapley", "sets.jsonl", "--output", "credits.jsonl", directory=tmp_path)
    records = written(tmp_path / "credits.jsonl")
    assert [record["line"] for record in records] == list(range(1, 10_004))
    failed = [record for record in records if record["status"] == "error"]
    assert [record["line"] for record in failed] == [4_001, 6_001, 8_001]
    assert [record["error"]["code"] for record in failed] == ["invalid_request", "invalid_request", "non_finite_value"]
    for number in (4_001, 6_001, 8_001):
        assert f"line {number}: " in finished.stderr
    assert "10000 sets answered, 3 lines failed" in finished.stderr
    assert "100%" in finished.stderr
    assert finished.returncode == 1
    assert records[0]["id"] == "rollout-0"


def test_batches_keep_groups_whole_and_change_no_number(tmp_path):
    """Groups whose lines are scattered over the file get the numbers of one single call."""
    sets = candidate_sets(64, seed=3)
    random.Random(1).shuffle(sets)  # noqa: S311 - test data
    (tmp_path / "sets.jsonl").write_text("".join(json.dumps(item) + "\n" for item in sets))
    finished = run("shapley", "sets.jsonl", "-o", "out.jsonl", "--batch-size", "10", "--quiet", directory=tmp_path)
    assert finished.returncode == 0, finished.stderr
    with Client("local:") as client:
        whole = client.shapley(sets)
    for row, record in enumerate(written(tmp_path / "out.jsonl")):
        expected = whole.advantages[row].tolist()
        assert record["advantages"] == [None if math.isnan(value) else value for value in expected]
        assert record["flags"] == list(whole.flags[row])


def test_stdin_to_stdout(tmp_path):
    """`-` reads standard input; results go to standard output, the account to standard error."""
    finished = run(
        "shapley", "-", "--quiet", directory=tmp_path, stdin='{"candidates": [{"reward": 1}, {"reward": 0}]}\n\n'
    )
    record = json.loads(finished.stdout)
    assert record["credits"] == [1.0, 0.0]
    assert record["flags"] == ["single_response"]
    assert finished.stderr == "1 sets answered, 0 lines failed\n"


def test_choices_are_names_or_json(tmp_path):
    """Utility, rule, normalisation and tokens can be given."""
    finished = run(
        "shapley",
        "-",
        "--quiet",
        "--utility",
        '{"type": "top_m", "m": 2}',
        "--credit",
        "leave_one_out",
        "--advantage",
        "none",
        "--tokens",
        '{"other": "zero"}',
        directory=tmp_path,
        stdin='{"n_tokens": 3, "candidates": [{"reward": 3, "span": [0, 1]}, {"reward": 2, "span": [1, 2]}, '
        '{"reward": 1, "span": null}]}\n',
    )
    record = json.loads(finished.stdout)
    assert record["credits"] == [2.0, 1.0, 0.0]
    assert record["token_advantages"] == [2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("absent.jsonl",), "absent.jsonl"),
        (("-", "--utility", "{broken"), "expected a name or a JSON object"),
        (("-", "--utility", "median"), "/utility"),
        (("-", "--url", "http://127.0.0.1:9", "--credit", "nonsense"), "/credit"),
        (("-", "--advantage", '{"type": "none", "baseline": "others"}'), "/advantage"),
        (("-", "--url", "foo"), "http://HOST:PORT"),
        (("-", "--timeout-s", "0"), "deadline_s"),
        (("-", "-o", "no/such/folder/out.jsonl"), "out.jsonl"),
    ],
)
def test_what_cannot_be_understood_is_said_in_one_line(tmp_path, arguments, sentence):
    """A wrong file name or choice gives exit status 2 and one sentence, not a traceback."""
    finished = run("shapley", *arguments, "--quiet", directory=tmp_path, stdin='{"candidates": [{"reward": 1}]}\n')
    assert finished.returncode == 2
    assert sentence in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
def test_a_file_through_a_running_service_gives_the_bits_of_the_local_computation(tmp_path):
    """`--url` changes who computes, and no number."""
    sets = candidate_sets(200, seed=11)
    (tmp_path / "sets.jsonl").write_text("".join(json.dumps(item) + "\n" for item in sets))
    with running_service(directory=tmp_path) as url:
        remote = run("shapley", "sets.jsonl", "-o", "remote.jsonl", "--quiet", "--url", url, directory=tmp_path)
    local = run("shapley", "sets.jsonl", "-o", "local.jsonl", "--quiet", directory=tmp_path)
    assert (remote.returncode, local.returncode) == (0, 0)
    assert (tmp_path / "remote.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


def test_a_line_that_lacks_something_fails_alone_and_flags_its_group(tmp_path):
    """A set without a needed reward is named with its place; the rest of its group is solved and flagged."""
    lines = (
        '{"group": 1, "candidates": [{"reward": 1.0}, {"reward": 0.0}]}\n'
        '{"group": 1, "candidates": [{"reward": 1.0}, {"text": "no reward"}]}\n'
        '{"group": 1, "candidates": [{"reward": 0.5}, {"reward": 0.0}]}\n'
    )
    finished = run("shapley", "-", "--quiet", directory=tmp_path, stdin=lines)
    records = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [record["status"] for record in records] == ["ok", "error", "ok"]
    assert "/candidates/1/reward" in records[1]["error"]["detail"]
    assert records[0]["flags"] == records[2]["flags"] == ["group_incomplete"]


def test_a_line_of_the_wrong_type_flags_its_group_and_keeps_its_name(tmp_path):
    """A line that is JSON but no candidate set still tells which group it is missing from."""
    lines = (
        '{"group": "p", "candidates": [{"reward": 1.0}]}\n{"id": "z", "group": "p", "candidates": [{"reward": "x"}]}\n'
    )
    finished = run("shapley", "-", "--quiet", directory=tmp_path, stdin=lines)
    records = [json.loads(line) for line in finished.stdout.splitlines()]
    assert "group_incomplete" in records[0]["flags"]
    assert records[1]["id"] == "z"


def test_bytes_that_are_not_text_cost_their_line_only(tmp_path):
    """A line that is not UTF-8 is reported by number; a byte order mark at the start is no rubbish."""
    sound = b'{"candidates": [{"reward": 1.0}]}\n'
    (tmp_path / "sets.jsonl").write_bytes(b"\xef\xbb\xbf" + sound + b'{"id": "\xff\xfe"}\n' + sound)
    finished = run("shapley", "sets.jsonl", "--quiet", "-o", "out.jsonl", directory=tmp_path)
    assert [record["status"] for record in written(tmp_path / "out.jsonl")] == ["ok", "error", "ok"]
    assert "line 2: " in finished.stderr


def test_each_line_of_a_wholly_bad_batch_has_its_own_code(tmp_path):
    """A refusal names ten offences; the command names all, each by its own code."""
    bad = ['{"candidates": [{"reward": NaN}]}'] * 11 + [
        '{"candidates": [{"reward": 1e200}]}',
        json.dumps({"candidates": [{"reward": 0.5}] * 300}),
    ]
    for choice in ((), ("--advantage", "per_slot"), ("--credit", '{"type": "mixture", "weights": [1.0, 0.5]}')):
        finished = run("shapley", "-", "--quiet", *choice, directory=tmp_path, stdin="\n".join(bad))
        codes = [json.loads(line)["error"]["code"] for line in finished.stdout.splitlines()]
        assert codes == ["non_finite_value"] * 11 + ["invalid_request", "too_many_players"]


@pytest.mark.slow
def test_a_file_too_large_for_one_request_goes_in_parts(tmp_path):
    """512 tables of 10 candidates are over the service's limit: the batch is halved, and no number changes."""
    draw = random.Random(2)  # noqa: S311 - test data
    tables = [{"utilities": [draw.random() for _ in range(1024)], "candidates": [{}] * 10} for _ in range(600)]
    texts = [{"candidates": [{"reward": 0.5, "text": "x" * 4_000}] * 4} for _ in range(600)]
    with running_service(directory=tmp_path) as url:
        for name, sets, choice in (("tables", tables, ("--utility", "table")), ("texts", texts, ())):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in sets))
            remote = run(
                "shapley", f"{name}.jsonl", *choice, "--quiet", "--url", url, "-o", "remote", directory=tmp_path
            )
            local = run("shapley", f"{name}.jsonl", *choice, "--quiet", "-o", "local", directory=tmp_path)
            assert (remote.returncode, local.returncode) == (0, 0), remote.stderr
            assert (tmp_path / "remote").read_bytes() == (tmp_path / "local").read_bytes()


def test_a_batch_in_which_nothing_can_be_answered_names_its_lines(tmp_path):
    """When all lines are bad each of them still gets its error."""
    lines = '{"candidates": [{"reward": NaN}]}\n' * 3
    finished = run("shapley", "-", "--quiet", directory=tmp_path, stdin=lines)
    records = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [record["error"]["code"] for record in records] == ["non_finite_value"] * 3
    assert finished.returncode == 1


@pytest.mark.slow
def test_a_service_that_does_not_answer_is_said(tmp_path):
    """A wrong address ends with one sentence after ten seconds, and status 1."""
    finished = run(
        "shapley", "-", "--quiet", "--url", "http://127.0.0.1:9", directory=tmp_path, stdin='{"candidates": []}\n'
    )
    assert finished.returncode == 1
    assert "not ready within 10 s" in finished.stderr
    assert json.loads(finished.stdout)["status"] == "error"


@pytest.mark.slow
def test_an_occupied_port_is_said(tmp_path):
    """A second service on one port ends with an error that names the port, and a status other than 0."""
    with running_service(directory=tmp_path) as url:
        port = url.rsplit(":", 1)[1]
        finished = run("serve", "--port", port, directory=tmp_path)
    assert finished.returncode != 0
    assert port in finished.stderr


def test_settings_that_cannot_be_used_are_named(tmp_path):
    """A bad setting ends the boot with its name and exit status 2."""
    (tmp_path / "creditd.toml").write_text("max_candidates = 0\nunknown_thing = 1\n")
    finished = run("serve", "--config", "creditd.toml", directory=tmp_path)
    assert finished.returncode == 2
    assert "max_candidates" in finished.stderr
    assert "unknown_thing" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
def test_a_closed_pipe_ends_quietly(tmp_path):
    """`creditd shapley … | head -1` leaves no traceback."""
    sets = "".join(json.dumps(item) + "\n" for item in candidate_sets(3_000, seed=5))
    (tmp_path / "sets.jsonl").write_text(sets)
    command = f"{sys.executable} -m creditd.cli shapley sets.jsonl --quiet | head -n 1"
    finished = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=os.environ, check=False
    )
    assert json.loads(finished.stdout)["line"] == 1
    assert "Traceback" not in finished.stderr
