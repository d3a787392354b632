import numpy as np
import pytest

import oar_task as task

WORK = "8 x 6 + 0 = 4 8 ; 7 x 6 + 4 = 4 6 ; 4 x 6 + 4 = 2 8 ; #### 2 8 6 8"
WORDS = [*WORK.split(), task.END]


def test_products_are_written_out():
    """478 × 6 = 2868, as the module's words have it."""
    assert task.prompt(478, 6) == "4 7 8 x 6 ="
    assert task.written(478, 6) == WORK
    assert len(WORDS) == task.WRITTEN
    assert WORDS.index(task.ANSWER) == task.REASONING <= 40


@pytest.mark.parametrize("row", [(100, 2), (999, 9), (478, 6), (305, 7)])
def test_what_is_written_is_right_and_of_the_form(row):
    """Also where the answer begins with a zero."""
    words = [*task.written(*row).split(), task.END]
    assert task.is_right(words, *row)
    assert task.is_well_formed(words)
    assert int("".join(task.answer(words))) == row[0] * row[1]


def test_every_digit_of_the_answer_counts():
    """And nothing but the answer does: the work may be wrong."""
    for place in range(task.REASONING + 1, task.WRITTEN - 1):
        assert not task.is_right([*WORDS[:place], "x", *WORDS[place + 1 :]], 478, 6)
    assert task.is_right(["0", *WORDS[1:]], 478, 6)
    assert not task.is_right(WORDS, 478, 7)


def test_answers_stand_behind_the_last_mark():
    """Up to the end, or as far as there is text; without a mark there is none."""
    assert task.answer(["####", "1", "####", "2", task.END, "3"]) == ["2"]
    assert task.answer(["####", "1"]) == ["1"]
    assert task.answer(["1", "2"]) is None
    assert not task.is_right(["1"], 478, 6)


@pytest.mark.parametrize("place", range(task.WRITTEN))
def test_each_token_of_the_form_has_its_place(place):
    """A stranger anywhere is seen; so is a sign of another place."""
    assert not task.is_well_formed([*WORDS[:place], task.PAD, *WORDS[place + 1 :]])
    if WORDS[place] in {task.TIMES, task.PLUS, task.IS, task.STOP}:
        other = task.PLUS if WORDS[place] != task.PLUS else task.IS
        assert not task.is_well_formed([*WORDS[:place], other, *WORDS[place + 1 :]])
    assert not task.is_well_formed(WORDS[:place])


def test_slips_go_on_from_where_they_were_made():
    """The answer is what the columns say, whatever they say; about one in ten digits of sums is drawn anew."""
    random = np.random.default_rng(0)
    wrong = []
    for number in range(100, 400):
        words = task.written(number, 7, random).split()
        columns = [words[place : place + 9] for place in range(0, task.REASONING, 9)]
        assert words[task.REASONING + 1 :] == [columns[2][6], columns[2][7], columns[1][7], columns[0][7]]
        assert [column[4] for column in columns] == ["0", columns[0][6], columns[1][6]]
        for digit, _, factor, _, carried, _, tens, ones, _ in columns:
            total = int(digit) * int(factor) + int(carried)
            wrong += [int(tens) != total // 10, int(ones) != total % 10]
    assert 0.06 < np.mean(wrong) < 0.12


def test_held_out_problems_are_never_trained_on():
    """Together they are all there are, each once."""
    trained, held_out = task.problems()
    rows = {tuple(row) for row in trained.tolist()} | {tuple(row) for row in held_out.tolist()}
    assert len(held_out) == task.HELD_OUT
    assert len(rows) == len(trained) + len(held_out) == 900 * 8


def test_kinds_of_tokens():
    """Two results, three other digits and four signs in each column."""
    kinds = [task.kind_of(place) for place in range(task.REASONING)]
    assert {kind: kinds.count(kind) for kind in task.KINDS} == {"result": 6, "other digit": 9, "sign": 12}
    assert [word for word, kind in zip(WORDS, kinds, strict=False) if kind == "result"] == list("484628")
