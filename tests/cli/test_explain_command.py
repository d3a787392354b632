"""`creditd explain`: what it does with files, choices and browsers."""

import json
import math
import re
from pathlib import Path

import httpx
import pytest

from cli.explained import TEXTS, answered, item_of, parsed
from contract.test_layout import blocked, in_a_bare_process
from creditd.cli.__main__ import main
from creditd.cli.explain.document import document
from creditd.cli.explain.reading import ExplainError, answer_of, request_of
from services import running_service

SECTION = (Path(__file__).parents[2] / "SCAR.md").read_text().split("\n## A look at the credit\n")[1].split("\n## ")[0]


def test_the_documentation_has_every_option(capsys):
    """SCAR.md names all that the command takes, and nothing else."""
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    taken = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert set(re.findall(r"--[a-z-]+", SECTION)) == taken


REQUEST = {"items": [{"prompt": "p", "completion": "one, two."}]}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(REQUEST),
        json.dumps(REQUEST["items"]),
        json.dumps(REQUEST["items"][0]),
        json.dumps(REQUEST["items"][0], indent=2),
        "\n" + json.dumps(REQUEST["items"][0]) + "\n\n",
    ],
)
def test_completions_come_in_several_forms(text):
    """A request, a list, one item, one item on a line: the same."""
    assert request_of(text) == REQUEST


def test_completions_come_one_per_line():
    """Blank lines do not count."""
    line = json.dumps(REQUEST["items"][0])
    assert request_of(f"{line}\n\n{line}\n")["items"] == REQUEST["items"] * 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the request is not JSON"),
        ("[]", "expected at least one completion"),
        ('{"items": 1}', "expected at least one completion"),
        ('[{"prompt": "p"}]', "item 1/completion: the field is required"),
        ('[{"prompt": 5, "completion": "a"}]', "item 1/prompt"),
        ('[{"prompt": [{"role": "user"}], "completion": "a"}]', "item 1/prompt"),
        ('[{"completion": "a", "token_offsets": [[0]]}]', "item 1/token_offsets"),
        ('[{"completion": "a", "completion_mask": [2]}]', "item 1/completion_mask"),
        ("[1]", "item 1"),
        ('{"completion": "\\ud800"}', "item 1: the body is not valid JSON"),
        ("3", "expected a request"),
        ('{"completion": "a"}\n{"completion"', "line 2"),
    ],
)
def test_what_is_no_request_is_said(text, sentence):
    """One sentence says what was expected."""
    with pytest.raises(ExplainError, match=re.escape(sentence)):
        request_of(text)


def changed(answer, **fields):
    """An answer whose only item has other fields."""
    return json.dumps({**answer, "items": [{**answer["items"][0], **fields}]})


def test_an_answer_must_fit_its_request():
    """Another number of items, of values, of tokens or other ranges are named; what fits is taken as it is."""
    request, answer = answered(item_of("one, two. three"))
    items = request["items"]
    assert answer_of(json.dumps(answer), items)["items"][0]["unit_values"] == answer["items"][0]["unit_values"]
    for text, sentence in (
        ("{", "not JSON"),
        ("[]", "no items"),
        (json.dumps({"items": []}), "got 0 answers; expected 1"),
        (changed(answer, unit_values=[1.0]), "got 1 unit_values, expected 3"),
        (changed(answer, token_rewards=[1.0]), "expected one for each of its token_offsets"),
        (changed(answer, unit_characters=[[0, 4], [4, 9], [9, 99]]), "within 15 characters"),
        (changed(answer, unit_characters=[[0, 4], [3, 9], [9, 15]]), "ranges in order"),
        (changed(answer, unit_characters=None), "expected units, unit_characters"),
        (changed(answer, units=[[0, 1], [1, 2], [2, 99]]), "answer 1: units: got [2, 99] behind 2"),
        (changed(answer, units=[[0, 2], [1, 3], [3, 5]]), "units: got [1, 3] behind 2"),
        (changed(answer, units=[[0, 1], [1, 1], [1, 5]]), "expected at least one token in each"),
        (changed(answer, gap="none"), "gap"),
        (changed(answer, gap=math.inf), "got Infinity, expected a number"),
        (changed(answer, gap=0.5).replace('"gap": 0.5', '"gap": 1e999'), "got 1e999, expected a number"),
        (changed(answer, gap=10**400), "expected a number"),
        (changed(answer, status="open"), "has the status open"),
        (changed(answer, status="error"), "has the status error"),
        (json.dumps({"items": [1]}), "expected an object"),
    ):
        with pytest.raises(ExplainError, match=re.escape(sentence)):
            answer_of(text, items)


@pytest.mark.parametrize("pair", [[0, 99], [1, 0], [-1, 1]])
def test_tokens_must_lie_within_the_completion(pair):
    """Offsets that the text does not have are named, with its length."""
    request, answer = answered({"prompt": "p", "completion": "a.", "token_offsets": [[0, 2]]})
    (item,) = request["items"]
    sentence = f"item 1/token_offsets: got {pair}; expected ranges within 2 characters"
    with pytest.raises(ExplainError, match=re.escape(sentence)):
        answer_of(json.dumps(answer), [{**item, "token_offsets": [pair]}])


@pytest.fixture
def files(tmp_path):
    """A request and its answer as files."""
    request, answer = answered(item_of(TEXTS["english"]), item_of(TEXTS["hebrew"]))
    names = [tmp_path / "request.json", tmp_path / "answer.json"]
    for name, found in zip(names, (request, answer), strict=True):
        name.write_text(json.dumps(found))
    return [str(name) for name in names]


def test_an_answer_that_is_there_needs_no_service(files, tmp_path, capsysbinary):
    """`--answer` renders to a file, or to standard output; both have the same bytes."""
    request, answer = files
    page = tmp_path / "page.html"
    assert main(["explain", request, "--answer", answer, "--html", str(page)]) == 0
    assert capsysbinary.readouterr().out == b""
    assert main(["explain", request, "--answer", answer]) == 0
    assert capsysbinary.readouterr().out == page.read_bytes()
    assert len(parsed(page.read_text(encoding="utf-8")).find("article")) == 2


def test_the_command_needs_the_base_install_alone(files):
    """A page is made where there is no web framework, no Redis and no model."""
    heavy = ("fastapi", "starlette", "uvicorn", "redis", "torch", "transformers", "orjson", "prometheus_client")
    code = (
        f"from creditd.cli.__main__ import main\nassert main(['explain', {files[0]!r}, '--answer', {files[1]!r}]) == 0"
    )
    assert in_a_bare_process(blocked(*heavy) + code).startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent.json"], "absent.json"),
        (["{request}", "--answer", "absent.json"], "absent.json"),
        (["{request}", "--answer", "{request}"], "answer 1/status: the field is required"),
        (["{request}", "--url", "local:"], "local mode has no models"),
        (["{request}", "--url", "foo"], "http://HOST:PORT"),
        (["{request}", "--credit", "{{broken"], "expected a name or a JSON object"),
        (["{request}", "--answer", "{answer}", "--html", "no/such/folder.html"], "folder.html"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(files, capsys, arguments, sentence):
    """A wrong file, address or choice gives exit status 2 and one sentence."""
    request, answer = files
    assert main(["explain", *(word.format(request=request, answer=answer) for word in arguments)]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("value", ["span", None, ["span"]])
@pytest.mark.parametrize(
    ("name", "words"),
    [("segmentation", ["--max-units", "3"]), ("estimator", ["--budget", "30"]), ("estimator", ["--seed", "1"]),
     ("segmentation", []), ("credit", []), ("expect", [])],
)  # fmt: skip
def test_a_choice_that_is_no_object_is_said(files, tmp_path, capsys, name, words, value):
    """As the wire has it, whether or not the command line adds to the choice; exit status 2."""
    request, answer = files
    (tmp_path / "request.json").write_text(json.dumps({**json.loads(Path(request).read_text()), name: value}))
    assert main(["explain", request, "--answer", answer, *words]) == 2
    assert f"creditd explain: /{name}: got " in capsys.readouterr().err
    if name != "expect" and not words:
        assert main(["explain", request, "--answer", answer, f"--{name}", "other"]) == 0


def test_a_completion_that_failed_is_named(files, tmp_path, capsys):
    """The others are shown, and the exit status is 1."""
    request, answer = files
    found = json.loads((tmp_path / "answer.json").read_text())
    error = {"code": "engine_failed", "pointer": "/items/1", "detail": "it failed", "retryable": True}
    found["items"][1] = {"status": "error", "error": error}
    (tmp_path / "answer.json").write_text(json.dumps(found))
    assert main(["explain", request, "--answer", answer, "--html", str(tmp_path / "page.html")]) == 1
    assert capsys.readouterr().err == "creditd explain: completion 2: engine_failed: it failed\n"
    assert "engine_failed" in (tmp_path / "page.html").read_text()


def test_without_a_browser_there_is_no_picture(files, tmp_path, monkeypatch, capsys):
    """One sentence says what to install or to name; nothing is written."""
    request, answer = files
    arguments = [
        "explain",
        request,
        "--answer",
        answer,
        "--html",
        str(tmp_path / "a.html"),
        "--png",
        str(tmp_path / "a.png"),
    ]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CREDITD_BROWSER", raising=False)
    assert main(arguments) == 2
    assert "none of chromium, chromium-browser, google-chrome, chrome is on the path" in capsys.readouterr().err
    monkeypatch.setenv("CREDITD_BROWSER", "nothing-of-this-name")
    assert main(arguments) == 2
    assert "CREDITD_BROWSER names 'nothing-of-this-name'" in capsys.readouterr().err
    assert not list(tmp_path.glob("a.*"))


def test_what_is_no_browser_is_said(files, tmp_path, monkeypatch, capsys):
    """A command that ends, or does not start, is no picture: exit status 1."""
    request, answer = files
    monkeypatch.setenv("CREDITD_BROWSER", "true")
    assert main(["explain", request, "--answer", answer, "--png", str(tmp_path / "a.png")]) == 1
    assert "the browser ended" in capsys.readouterr().err
    (tmp_path / "broken").write_text("not a program")
    (tmp_path / "broken").chmod(0o755)
    monkeypatch.setenv("CREDITD_BROWSER", str(tmp_path / "broken"))
    assert main(["explain", request, "--answer", answer, "--png", str(tmp_path / "a.png")]) == 1
    assert "does not start" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


SERVICE = Path(__file__).parents[1] / "docs" / "scar_service.py"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A service with one reward model."""
    with running_service(script=SERVICE, directory=tmp_path_factory.mktemp("service")) as address:
        yield address


def shown_by(page):
    """The completions of a document, without what differs from one request to the next."""
    tree = parsed(page)
    return [(node.name, node.kinds, node.without("quiet")) for node in tree.find("article") for node in node.all()]


@pytest.mark.slow
def test_a_service_is_asked_with_the_choices_of_the_command_line(url, tmp_path, capsysbinary):
    """The page is that of the answer of the same request by HTTP, whichever form the completions come in."""
    texts = ("Paris, of course. It lies on the Seine.", "I think it is Lyon.", "")
    items = [item_of(text, prompt="Capital of France?", id=text[:5]) for text in texts]
    items[0] |= {"kl": [-0.125] * len(items[0]["token_offsets"]), "other_reward": 0.5}
    lines = tmp_path / "items.jsonl"
    lines.write_text("".join(json.dumps(item) + "\n" for item in items))
    choices = {
        "segmentation": {"type": "sentence", "max_units": 1},
        "absent": {"type": "mask_token", "text": "<mask>"},
        "credit": {"type": "shapley"},
        "estimator": {"type": "auto", "budget": 4, "seed": 1},
        "alpha": 0.5,
        "advantage": {"type": "pooled"},
    }
    words = ["--segmentation", "sentence", "--max-units", "1", "--absent", json.dumps(choices["absent"]), "--credit",
             "shapley", "--budget", "4", "--seed", "1", "--alpha", "0.5", "--advantage", "pooled"]  # fmt: skip
    assert main(["explain", str(lines), "--url", url, "--model", "rm", *words]) == 0
    by_command = capsysbinary.readouterr().out.decode()
    request = {"model": "rm", "items": items, **choices}
    answer = httpx.post(f"{url}/v1/credit/scar", json=request).json()
    assert shown_by(by_command) == shown_by(document(request, answer))
    (about,) = parsed(by_command).find("quiet")
    assert about.text.startswith("model rm · segmentation sentence · absent mask_token · credit shapley · ")
    whole = tmp_path / "request.json"
    whole.write_text(json.dumps(request))
    assert main(["explain", str(whole), "--url", url]) == 0
    assert shown_by(capsysbinary.readouterr().out.decode()) == shown_by(by_command)


@pytest.mark.slow
def test_what_the_service_says_of_single_completions_is_shown(url, tmp_path, capsysbinary):
    """A completion with too many units for its budget fails alone; fallbacks and estimates are as the service says."""
    (tmp_path / "items.json").write_text(
        json.dumps([{"prompt": "p", "completion": "a. b. c. d. e."}, {"prompt": "q", "completion": "Paris."}])
    )
    words = ["--credit", "prefix", "--budget", "3"]
    assert main(["explain", str(tmp_path / "items.json"), "--url", url, *words]) == 1
    found = capsysbinary.readouterr()
    assert b"completion 1: budget_exceeded" in found.err
    first, second = parsed(found.out.decode()).find("credit")
    assert first.find("says")
    assert second.find("value")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "arguments", "sentence", "status"),
    [
        ('{"prompt": "p", "completion": "a."}', ["--model", "nobody"], "unknown_model", 1),
        ('{"prompt": "p", "completion": "a."}', ["--credit", "best"], "/credit", 1),
        ('{"prompt": "p", "completion": "a."}', ["--alpha", "2"], "/alpha", 1),
        ('{"prompt": "p", "completion": "a.", "text": 1}', [], "/items/0/text: there is no such field", 2),
        (
            '{"items": [{"prompt": "p", "completion": "a."}], "dry_run": true}',
            [],
            "/dry_run: there is no such field",
            2,
        ),
        ('{"completion": "a."}', [], "no item has a prompt", 2),
    ],
)
def test_what_the_service_refuses_is_said(url, tmp_path, capsys, text, arguments, sentence, status):
    """One sentence, in the words of the service where it has said something, and the exit status of SCAR.md."""
    if status == 1 and arguments[0] != "--model":
        statuses = dict(re.findall(r"(\d) if ([^;]*)", SECTION.split("The exit status is")[1]))
        assert "refuses the request" in statuses["1"]
        assert f"`{' '.join(arguments)}`" in statuses["1"]
    (tmp_path / "items.json").write_text(text)
    assert main(["explain", str(tmp_path / "items.json"), "--url", url, *arguments]) == status
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_a_service_without_reward_models_says_how_to_have_one(tmp_path, capsys):
    """Nothing is asked of it."""
    (tmp_path / "items.json").write_text('{"prompt": "p", "completion": "a."}')
    with running_service(directory=tmp_path) as address:
        assert main(["explain", str(tmp_path / "items.json"), "--url", address]) == 2
    assert "this service has no reward model; `make serve-models" in capsys.readouterr().err
