"""`creditd replay`, on files that a client wrote."""

import json
import math
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from creditd.cli.__main__ import main
from creditd.client import Client, InvalidRequestError, TransportError
from creditd.client.exchanges import answer_of, parsed
from creditd.wire.versions import package_version
from services import running_service

SETS = [[0.9, 0.5, 0.5, 0.1], [0.2, float("nan"), -0.0, None], [1.0, 0.0, 0.0, 0.0]]
OPTIONS = {"groups": ["p1", "p1", "p1"], "ids": ["a", "b", "c"], "set_rewards": [0.0, 1.0, 0.5]}


@pytest.fixture
def recorded(tmp_path):
    """The file of one exchange in local mode: a set fails, one has negative zero, all belong to one prompt."""
    return made(tmp_path, lambda client: client.shapley(SETS, on_item_error="return", **OPTIONS))


def made(directory, call, url="local:", **options):
    """The file that one call leaves, whether it raises or not."""
    with Client(url, record=directory, **options) as client:
        with suppress(InvalidRequestError, TransportError):
            call(client)
        assert client.record_failures == 0
    (path,) = directory.glob("*.json")
    return path


def changed(path, change):
    """The same file after somebody changed its fields."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def with_answer(change):
    """A change of the recorded answer."""

    def apply(document):
        answer = json.loads(document["response"])
        change(answer)
        document["response"] = json.dumps(answer)

    return apply


def replayed(capsys, *arguments):
    """Exit status, lines of standard output, standard error."""
    status = main(["replay", *map(str, arguments)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return status, printed.out.splitlines(), printed.err


def test_the_same_question_gets_the_same_bits(recorded, capsys):
    """An unchanged file is identical, and its ledger has one line per set with name, group, K, utilities and flags."""
    status, lines, errors = replayed(capsys, recorded)
    assert (status, errors) == (0, "")
    assert "from local:, asked again at local:" in lines[0]
    assert lines[1].split() == ["set", "group", "K", "v(∅)", "v(N)", "Σ", "credit", "gap", "flags"]
    assert lines[2].split() == ["a", "p1", "4", "0", "0.9", "0.9", lines[2].split()[6], "group_incomplete"]
    assert lines[3].split() == ["b", "p1", "4", "nan", "nan", "nan", "nan", "error:", "non_finite_value"]
    assert lines[5:] == [f"{recorded}: identical to the last bit"]


def test_sets_without_names_are_numbered(tmp_path, capsys):
    """Without ids the ledger says the row, and without groups it leaves the place empty."""
    path = made(tmp_path, lambda client: client.shapley([[1.0, 0.0], [0.5]]))
    status, lines, _ = replayed(capsys, path)
    assert status == 0
    assert [line.split()[:2] for line in lines[2:4]] == [["0", "2"], ["1", "1"]]


def test_whole_responses_have_a_ledger_too(tmp_path, capsys):
    """One line per prompt: how many responses, and between what their advantages lie."""
    path = made(tmp_path, lambda client: client.group([[1.0, 0.5, 0.0], [2.0], []], advantage={"type": "dr_grpo"}))
    status, lines, _ = replayed(capsys, path)
    assert status == 0
    assert lines[2].split() == ["0", "3", "-0.5", "0.5"]
    assert lines[3].split() == ["1", "1", "0", "0", "degenerate_group,", "single_response"]
    assert lines[-1].endswith("identical to the last bit")


def nudge(values, place):
    """Move one number to its neighbour, as a change of the arithmetic would."""
    values[place] = math.nextafter(values[place], math.inf)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda columns: nudge(columns["advantages"]["values"], 0), "advantages: 1 of 12 numbers differ, largest"),
        (lambda columns: nudge(columns["credits"]["values"], 1), "credits: 1 of 12 numbers differ"),
        (lambda columns: nudge(columns["set_advantages"], 2), "set_advantages: 1 of 3 numbers differ"),
        (lambda columns: nudge(columns["set_reward_advantages"], 2), "set_reward_advantages: 1 of 3 numbers differ"),
        (lambda columns: nudge(columns["utility_empty"], 2), "utility_empty: 1 of 3 numbers differ"),
        (lambda columns: nudge(columns["utility_grand"], 2), "utility_grand: 1 of 3 numbers differ"),
        (lambda columns: nudge(columns["credit_sum"], 2), "credit_sum: 1 of 3 numbers differ"),
        (lambda columns: nudge(columns["gap"], 2), "gap: 1 of 3 numbers differ"),
        (
            lambda columns: columns["utility_empty"].__setitem__(0, -0.0),
            "utility_empty: 1 of 3 numbers differ, largest",
        ),
        (lambda columns: columns["gap"].__setitem__(0, None), "gap: 1 of 3 numbers differ, a number against none"),
        (lambda columns: columns["flags"].__setitem__(0, 0), "flags: 1 of 3 rows differ"),
        (lambda columns: columns.update(method="table"), "method: recorded table, now order_statistic"),
        (lambda columns: columns.update(set_reward_advantages=None), "set_reward_advantages: not recorded, and"),
        (
            lambda columns: columns.update(token_advantages={"values": [], "row_splits": [0, 0, 0, 0]}),
            "token_advantages: recorded, and not answered now",
        ),
    ],
)
def test_one_changed_bit_is_found(change, sentence, recorded, capsys):
    """A number that moved to its neighbour, a lost sign, a lost flag: the field is named, and the status is 1."""
    changed(recorded, with_answer(lambda answer: change(answer["columns"])))
    status, lines, _ = replayed(capsys, recorded)
    assert status == 1
    assert f"{recorded}: different" in lines
    assert [line for line in lines if sentence in line] == lines[-1:]


def test_a_changed_error_is_found(recorded, capsys):
    """Where something is wrong, and what kind of wrong, is part of the answer; the words are not."""
    changed(recorded, with_answer(lambda answer: answer["errors"][0].update(detail="in other words")))
    assert replayed(capsys, recorded)[0] == 0
    changed(recorded, with_answer(lambda answer: answer["errors"][0].update(code="shape_mismatch")))
    status, lines, _ = replayed(capsys, recorded)
    assert (status, lines[-1]) == (1, "  errors: 1 of 1 rows differ")


def test_token_advantages_are_compared(tmp_path, capsys):
    """One token of one completion counts, and so does the number of tokens."""
    options = {"spans": [[[0, 1], [2, 3]]], "n_tokens": [4], "tokens": {"other": "set"}}
    path = made(tmp_path, lambda client: client.shapley([[1.0, 0.5]], **options))
    assert replayed(capsys, path)[0] == 0
    changed(path, with_answer(lambda answer: nudge(answer["columns"]["token_advantages"]["values"], 3)))
    status, lines, _ = replayed(capsys, path)
    assert status == 1
    assert lines[-1].startswith("  token_advantages: 1 of 4 numbers differ, largest difference ")
    shorter = {"values": [0.0], "row_splits": [0, 1]}
    changed(path, with_answer(lambda answer: answer["columns"].update(token_advantages=shorter)))
    assert replayed(capsys, path)[1][-1] == "  token_advantages: rows of other lengths"


def test_a_changed_question_is_a_different_answer(recorded, capsys):
    """What is compared is the answer to the request in the file: another request does not pass for it."""
    changed(recorded, lambda document: document.update(request=document["request"].replace("0.9", "0.8")))
    assert replayed(capsys, recorded)[0] == 1


def test_another_version_is_said_and_is_no_difference(recorded, capsys):
    """Identity, time in the queue and version may change; a changed version is printed."""

    def change(answer):
        answer["service"] = {"version": "0.0.1", "methods": 0}
        answer["request_id"] = "other"
        answer["usage"]["queue_s"] = 5.0

    changed(recorded, with_answer(change))
    status, lines, _ = replayed(capsys, recorded)
    assert status == 0
    assert lines[-2].startswith(f"  recorded with creditd 0.0.1 (methods 0), now creditd {package_version()} (methods ")


def test_a_refusal_is_the_same_refusal(tmp_path, capsys):
    """A recorded refusal is asked again as well: the same code is identical, another one or an answer is not."""
    path = made(tmp_path, lambda client: client.shapley([[float("nan")]]))
    status, lines, _ = replayed(capsys, path)
    assert status == 0
    assert lines[-1] == f"{path}: identical: InvalidRequestError 422 non_finite_value again"
    changed(path, lambda document: document["error"].update(code="shape_mismatch"))
    status, lines, _ = replayed(capsys, path)
    assert status == 1
    assert lines[-1].endswith(
        "recorded InvalidRequestError 422 shape_mismatch, now InvalidRequestError 422 non_finite_value"
    )
    changed(path, lambda document: document.update(request=document["request"].replace("NaN", "1.0")))
    status, lines, _ = replayed(capsys, path)
    assert status == 1
    assert lines[-1].endswith("recorded InvalidRequestError 422 shape_mismatch, now an answer")
    assert lines[2].split()[0] == "0"


def test_an_answer_that_became_a_refusal_is_different(recorded, capsys):
    """The ledger is then that of the recording."""
    changed(recorded, lambda document: document.update(request=document["request"].replace('"p1",', "", 1)))
    status, lines, _ = replayed(capsys, recorded)
    assert status == 1
    assert lines[2].split()[:2] == ["a", "4"]
    assert lines[-1].endswith("recorded an answer, now InvalidRequestError 422 shape_mismatch")


def test_a_call_that_got_no_answer_can_be_asked_again(tmp_path, capsys):
    """The ledger appears, and the outcome differs from the recorded one."""

    def nobody(_):
        raise httpx.ConnectError("refused")

    path = made(
        tmp_path,
        lambda client: client.shapley(SETS, **OPTIONS, deadline_s=1e-3),
        "http://credit.test",
        transport=httpx.MockTransport(nobody),
    )
    status, lines, _ = replayed(capsys, path)
    assert status == 1
    assert lines[2].split()[0] == "a"
    assert lines[-1].endswith("recorded TransportError, now an answer")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not JSON"),
        (b"\x89PNG\r\n", "not JSON"),
        (b"[1, 2]", "not a recorded exchange"),
        (b'{"format": 7}', "this version reads format 1"),
        (b'{"format": 1, "time": "yesterday"}', "time: "),
    ],
)
def test_rubbish_is_said_in_one_sentence(content, sentence, tmp_path, capsys):
    """A file that is no recording gives status 2 and one line."""
    path = tmp_path / "rubbish.json"
    path.write_bytes(content)
    status, lines, errors = replayed(capsys, path)
    assert (status, lines) == (2, [])
    assert errors.startswith(f"creditd replay: {path}: ")
    assert sentence in errors
    assert errors.count("\n") == 1


def test_a_broken_recording_is_said_in_one_sentence(recorded, capsys):
    """So is a recording without an answer, with an answer in no schema, or with a request of another kind."""
    original = recorded.read_text()
    for fields, sentence in (
        ({"response": None}, "expected the text of an answer"),
        ({"response": '{"columns": {}}'}, "not in the schema"),
        ({"request": '{"sets": []}'}, "expected the columns"),
        (
            {"operation": "/v1/other"},
            "expected /v1/credit/shapley, /v1/credit/group, /v1/credit/scar, /v1/credit/oar or /v1/credit/compose",
        ),
    ):
        recorded.write_text(original)
        changed(recorded, lambda document, fields=fields: document.update(fields))
        status, lines, errors = replayed(capsys, recorded)
        assert (status, lines) == (2, [])
        assert sentence in errors
        assert errors.count("\n") == 1


def test_reshaped_advantages_are_replayed(tmp_path, capsys):
    """With the mass of each completion; local mode says the same again, and a changed weight is seen."""
    options = {"sensitivities": [[0.0, 1.0, 4.0], [2.0, None]], "advantages": [1.0, -0.5], "ids": ["a", "b"]}
    path = made(tmp_path, lambda client: client.oar(reasoning=[None, [0, 1]], **options))
    status, lines, errors = replayed(capsys, path)
    assert (status, errors) == (0, "")
    assert lines[1].split()[:4] == ["completion", "tokens", "reweighted", "advantage"]
    assert lines[2].split()[:5] == ["a", "3", "3", "1", "3"]
    assert lines[3].split() == ["b", "2", "1", "-0.5", "1", "1", "flat_sensitivity"]
    changed(path, with_answer(lambda answer: answer["items"][1].update(weights=[2.0, 1.0])))
    status, lines, _ = replayed(capsys, path)
    assert status == 1
    assert any("weights: 1 of 5 numbers differ, largest difference 1, first at 3" in line for line in lines)


def test_several_files_are_replayed_whatever_one_of_them_is(recorded, tmp_path, capsys):
    """Each file gets its verdict; the status is that of the worst."""
    absent, different = tmp_path / "absent.json", tmp_path / "different.json"
    different.write_text(recorded.read_text())
    changed(different, with_answer(lambda answer: nudge(answer["columns"]["gap"], 2)))
    status, lines, errors = replayed(capsys, absent, different, recorded)
    assert status == 2
    assert f"{absent}: No such file" in errors
    assert f"{different}: different" in lines
    assert lines[-1] == f"{recorded}: identical to the last bit"
    assert replayed(capsys, recorded, different)[0] == 1
    assert replayed(capsys, tmp_path)[0] == 2


def test_an_address_that_cannot_be_used_is_said(recorded, capsys):
    """A wrong address, or one where nobody listens, gives status 2 and one sentence."""
    assert "expected http://HOST:PORT" in replayed(capsys, recorded, "--url", "nonsense")[2]
    status, lines, errors = replayed(capsys, recorded, "--url", "http://127.0.0.1:9", "--timeout-s", "0.2")
    assert (status, lines) == (2, [])
    assert "not ready within" in errors


def test_names_do_not_move_the_cursor(tmp_path, capsys):
    """A name with control characters is written out."""
    path = made(tmp_path, lambda client: client.shapley([[1.0]], ids=["\x1b[2J"], groups=["größe"]))
    lines = replayed(capsys, path)[1]
    assert lines[2].split()[:2] == ["'\\x1b[2J'", "größe"]


@pytest.mark.slow
def test_a_recording_of_a_service_is_replayed_here_and_there(tmp_path):
    """What a running service answered is answered by this process and by the service again, to the last bit."""
    with running_service(directory=tmp_path) as url:
        path = made(tmp_path, lambda client: client.shapley(SETS, on_item_error="return", **OPTIONS), url)
        for arguments in ((), ("--url", url)):
            finished = subprocess.run(
                [sys.executable, "-m", "creditd.cli", "replay", path.name, *arguments],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert finished.returncode == 0, finished.stdout + finished.stderr
            assert finished.stdout.splitlines()[-1] == f"{path.name}: identical to the last bit"
    assert answer_of(parsed(path.read_bytes())).ok.tolist() == [True, False, True]


@pytest.fixture(scope="module")
def judging(tmp_path_factory):
    """A service with a reward model."""
    script = Path(__file__).parents[1] / "adapters" / "model_service.py"
    with running_service(script=script, directory=tmp_path_factory.mktemp("service")) as url:
        yield url


def test_token_credit_is_replayed_where_its_model_is(judging, tmp_path, capsys):
    """One line per completion: tokens, units, both utilities and what its rewards sum to; identical again."""
    texts = ["one, two, three.", "four", ""]
    options = {"model": "rm", "groups": ["p", "p", "p"], "ids": ["a", None, "c"], "advantage": "pooled"}
    path = made(tmp_path, lambda client: client.scar(["ask"] * 3, texts, **options), judging)
    status, lines, errors = replayed(capsys, "--url", judging, path)
    assert (status, errors) == (0, "")
    assert lines[1].split() == [
        "completion",
        "group",
        "tokens",
        "units",
        "v(∅)",
        "v(P)",
        "Σ",
        "rewards",
        "gap",
        "flags",
    ]
    first = answer_of(parsed(path.read_bytes()))
    assert [line.split()[:4] for line in lines[2:4]] == [["a", "p", "3", "3"], ["1", "p", "1", "1"]]
    assert lines[3].split()[4:8] == [f"{value:.6g}" for value in _numbers_of(first, 1)]
    assert lines[4].split()[-1] == "fallback_return"
    assert lines[-1] == f"{path}: identical to the last bit"


def _numbers_of(result, row):
    return [column[row] for column in (result.utility_empty, result.utility_grand, result.ledger.total, result.gap)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda item: nudge(item["token_rewards"], 0), "token_rewards: 1 of 1 numbers differ"),
        (lambda item: item["ledger"].update(total=7.0), "ledger total: 1 of 1 numbers differ"),
        (lambda item: item["ledger"].update(alpha=0.5), "ledger alpha: 1 of 1 numbers differ, largest difference 0.5"),
        (lambda item: item.update(units=[[0, 2]]), "units: 1 of 1 rows differ"),
        (lambda item: item.update(units=[], unit_characters=[], unit_values=[]), "units: rows of other lengths"),
        (lambda item: item.update(method="uniform"), "methods: 1 of 1 rows differ"),
        (lambda item: item.update(exact=False), "exact: 1 of 1 rows differ"),
        (lambda item: item["flags"].append("units_merged"), "flags: 1 of 1 rows differ"),
        (lambda item: item.update(unit_characters=None), "unit_characters: not recorded, and answered now"),
    ],
)
def test_every_difference_of_token_credit_is_named(change, sentence, judging, tmp_path, capsys):
    """Ranges, parts of the ledger and numbers, each by its name."""
    path = made(tmp_path, lambda client: client.scar(["ask"], ["four"], model="rm"), judging)
    changed(path, with_answer(lambda answer: change(answer["items"][0])))
    status, lines, _ = replayed(capsys, "--url", judging, path)
    assert status == 1
    assert any(line.strip().startswith(sentence) for line in lines), lines
