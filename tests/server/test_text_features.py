import numpy as np
import pytest

from server.model_services import WORDS, FakeEmbedder, columns_of, sets_of, with_embedder
from server.running import on_service, post, rows_of

ROWS = [("sun", "sun rain", "fog"), ("snow", "rain", "snow rain")]
TARGETS = ["sun", "rain", "snow"]


def asked(body, resources=None):
    """The answer of a service with an embedding model."""
    return on_service(lambda service: service.post(body), resources or with_embedder())


def body_of(form, *rows, rewards=None, **options):
    """Texts without prompts, with rewards if there are any."""
    body = form(*rows, **options)
    if "sets" in body:
        for number, one in enumerate(body["sets"]):
            del one["prompt"]
            for place, candidate in enumerate(one["candidates"]):
                if rewards is not None:
                    candidate["reward"] = rewards[number][place]
    else:
        del body["columns"]["prompts"]
        if rewards is not None:
            del body["columns"]["row_splits"]
            body["columns"]["rewards"] = rewards
    return body


def embedding(**options):
    """The choice of features."""
    return {"features": {"type": "embedding", "model": "emb", **options}}


def vector(text):
    """What the fake model makes of a text."""
    counts = np.array([text.split().count(word) for word in WORDS], dtype=np.float64)
    return counts / np.linalg.norm(counts)


def credits_of(found):
    """Credits of every set, whatever the form of the answer."""
    return rows_of(found["columns"]["credits"]) if "columns" in found else [one["credits"] for one in found["sets"]]


def cosines(row, others):
    """Cosines of texts with others."""
    return [[float(vector(text) @ vector(other)) for other in others] for text in row]


FORMS = pytest.mark.parametrize("form", [sets_of, columns_of])


@FORMS
@pytest.mark.parametrize("targets", [TARGETS, None])
def test_facility_location_of_texts(form, targets):
    """Scores are cosines with the targets, or with the candidates of the set themselves."""
    utility = {"type": "facility_location"}
    found = asked(body_of(form, *ROWS, utility=utility, **embedding(targets=targets))).json()
    sets = [{"candidates": [{"scores": row} for row in cosines(texts, targets or texts)]} for texts in ROWS]
    expected = post({"sets": [{"group": "p", **one} for one in sets], "utility": utility}).json()
    for row, one in zip(credits_of(found), expected["sets"], strict=True):
        assert row == pytest.approx(one["credits"], abs=1e-9)
    assert (found["model"], found["usage"]["evaluations"]) == (
        "emb",
        6 + len(set(targets or ()) - {"sun", "rain", "snow"}),
    )


@FORMS
def test_coverage_of_texts(form):
    """A candidate covers the targets whose cosine reaches the threshold; weights go by the targets' texts."""
    utility = {"type": "coverage", "weights": {"rain": 3.0}, "default_weight": 0.5}
    found = asked(body_of(form, *ROWS, utility=utility, **embedding(targets=TARGETS, threshold=0.6))).json()
    topics = [[["sun"], ["sun", "rain"], []], [["snow"], ["rain"], ["snow", "rain"]]]
    sets = [{"group": "p", "candidates": [{"topics": one} for one in row]} for row in topics]
    expected = post({"sets": sets, "utility": utility}).json()
    for row, one in zip(credits_of(found), expected["sets"], strict=True):
        assert row == pytest.approx(one["credits"], abs=1e-12)


@FORMS
@pytest.mark.parametrize("utility", [{"type": "redundancy", "penalty": 0.5}, {"type": "log_det"}])
def test_similarities_of_texts(form, utility):
    """Similarities are cosines, beside rewards that the caller has."""
    needs_rewards = utility["type"] == "redundancy"
    rewards = [[1.0, 0.5, 0.25], [0.5, 0.5, 0.0]] if needs_rewards else None
    found = asked(body_of(form, *ROWS, rewards=rewards, utility=utility, **embedding())).json()
    sets = [
        {
            "group": "p",
            "similarities": cosines(texts, texts),
            "candidates": [{"reward": rewards[row][place]} if rewards else {} for place in range(3)],
        }
        for row, texts in enumerate(ROWS)
    ]
    expected = post({"sets": sets, "utility": utility}).json()
    for row, one in zip(credits_of(found), expected["sets"], strict=True):
        assert row == pytest.approx(one["credits"], abs=1e-9)


@FORMS
def test_two_models_answer_one_request(form):
    """Rewards from one model and similarities from another: no number comes from the caller."""
    options = {"utility": {"type": "redundancy", "penalty": 0.5}, "rewards": {"type": "model", "model": "rm"}}
    found = asked(form(*ROWS, **options, **embedding())).json()
    assert found["model"] == "rm"
    assert found["usage"]["evaluations"] == 12
    values = {"sun": 1.0, "sun rain": 1.25, "fog": 0.125}
    worth = list(values.values())
    similar = np.array(cosines(ROWS[0], ROWS[0]))
    expected = [worth[k] - 0.25 * (similar[k].sum() - 1) for k in range(3)]
    assert credits_of(found)[0] == pytest.approx(expected, abs=1e-9)


def test_all_texts_are_asked_about_at_once():
    """One question, of candidates and targets together."""
    embedder = FakeEmbedder()
    body = body_of(sets_of, *ROWS, utility={"type": "facility_location"}, **embedding(targets=TARGETS))
    assert asked(body, with_embedder(embedder)).status_code == 200
    assert embedder.asked == [(*ROWS[0], *ROWS[1], *TARGETS)]


def test_a_set_without_candidates_has_no_features_and_no_error():
    """Nothing is asked where there is no text, and the response counts as one in which nothing was found."""
    embedder = FakeEmbedder()
    body = body_of(sets_of, (), utility={"type": "facility_location"}, **embedding())
    assert "no_candidates" in asked(body, with_embedder(embedder)).json()["sets"][0]["flags"]
    assert embedder.asked == []


def test_a_text_without_a_vector_fails_its_set_alone():
    """What is too long, and what has no direction, is an error of the set."""
    rows = [("sun", "x" * 41), ("nothing known", "sun"), ("sun", "rain")]
    found = asked(body_of(sets_of, *rows, utility={"type": "facility_location"}, **embedding(targets=["sun"]))).json()
    assert [one["status"] for one in found["sets"]] == ["error", "error", "ok"]
    assert [one["error"]["code"] for one in found["sets"][:2]] == ["context_exceeded", "non_finite_utility"]
    assert found["sets"][0]["error"]["pointer"] == "/sets/0/candidates/1/text"


def test_a_target_without_a_vector_fails_the_request():
    """No set has its features then; the pointer says which target."""
    body = body_of(sets_of, *ROWS, utility={"type": "facility_location"}, **embedding(targets=["sun", "y" * 41]))
    problem = asked(body).json()
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("context_exceeded", "/features/targets/1")


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"utility": {"type": "max"}, **embedding()}, "/features"),
        ({"utility": {"type": "noisy_or"}, **embedding()}, "/features"),
        ({"utility": {"type": "coverage"}, **embedding(targets=["sun"])}, "/features/threshold"),
        ({"utility": {"type": "model", "model": "rm"}, **embedding()}, "/features"),
        (
            {"utility": {"type": "facility_location"}, "features": {"type": "embedding", "model": "rm"}},
            "/features/model",
        ),
        ({"utility": {"type": "facility_location"}, **embedding(targets=[])}, "/features/targets"),
        ({"utility": {"type": "coverage"}, **embedding(targets=["sun"], threshold=2.0)}, "/features/threshold"),
    ],
)
def test_what_has_no_use_is_refused(options, pointer):
    """Each refusal has its pointer."""
    problem = asked(body_of(sets_of, *ROWS, **options)).json()
    assert problem["errors"][0]["pointer"] == pointer, problem


@FORMS
def test_what_the_model_tells_is_not_given_beside(form):
    """Scores in the sets and from a model contradict each other; a null text has no vector."""
    body = body_of(form, *ROWS, utility={"type": "facility_location"}, **embedding(targets=["sun"]))
    if "sets" in body:
        body["sets"][0]["candidates"][0]["scores"] = [1.0]
    else:
        body["columns"]["scores"] = [[1.0]] * 6
    assert asked(body).json()["errors"][0]["pointer"] in {"/sets/0/candidates/0/scores", "/columns/scores"}
    body = body_of(form, ("sun", None), ("sun",), utility={"type": "facility_location"}, **embedding(targets=["sun"]))
    found = asked(body).json()
    errors = found.get("errors") or [one["error"] for one in found["sets"] if one["status"] == "error"]
    assert [one["pointer"] for one in errors] in (["/sets/0/candidates/1/text"], ["/columns/texts/1"])


def test_too_many_pairs_are_refused_before_anything_is_asked():
    """Cosines are counted from the sizes, and said."""
    rows = [("sun",) * 200] * 40
    problem = asked(body_of(sets_of, *rows, utility={"type": "facility_location"}, **embedding())).json()
    assert problem["code"] == "budget_exceeded"
    assert "got 1600000 pairs of texts to compare" in problem["detail"]
