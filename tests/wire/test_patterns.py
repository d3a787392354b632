import hashlib
import threading
import time
from contextlib import contextmanager
from itertools import pairwise, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.wire.patterns import MAX_PATTERN, MAX_WRITTEN_OUT, pattern_ends


def cut(pattern, text):
    """The segments of a text."""
    ends = pattern_ends(pattern)(text).tolist()
    return [text[start:stop] for start, stop in pairwise([0, *ends])]


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"\n+", "a\n\nb\nc", ["a\n\n", "b\n", "c"]),
        (r"(?i)step \d+:", "Step 1: boil. STEP 2: drink", ["Step 1:", " boil. STEP 2:", " drink"]),
        (r"\p{Lo}", "咖啡 tea", ["咖", "啡", " tea"]),
        (r"(?s).(?=\n[-*] )", "List:\n- a\n* b", ["List:", "\n- a", "\n* b"]),
        (r"(?=b)|c", "abcab", ["abc", "ab"]),
        (r"(?r)a", "aba", ["a", "ba"]),
        (r"never", "a b", ["a b"]),
        (r" ", "  a b  ", ["  a ", "b  "]),
        (r"\{date}|\(?x\)", "a{date}b(x)", ["a{date}", "b(x)"]),
        (r"x", "", []),
    ],
)
def test_texts_are_cut_behind_matches(pattern, text, expected):
    """A match with characters ends a segment; a place between characters, or white space alone, is no segment."""
    assert cut(pattern, text) == expected


@given(st.text("ab \n,", max_size=40))
def test_segments_are_the_text(text):
    """Segments joined are the text, whatever matches."""
    assert "".join(cut(r",|b+\s", text)) == text


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("secret(", "does not compile from character 7 on"),
        (r"secret\p{nothing}", "does not compile"),
        (r"\L<secret>", "does not compile"),
        ("(" * 400 + "secret" + ")" * 400, "nested too deeply"),
        ("(?:secret)*", "matches the empty text"),
        ("^|$", "matches the empty text"),
        ("s" * (MAX_PATTERN + 1), f"{MAX_PATTERN + 1} characters, expected at most {MAX_PATTERN}"),
        ("(?:(?:secret|s){999}){999}", "repeats too often by counts"),
        (r"secret(?R)?", "recursion"),
        (r"(secret)(?1)", "recursion"),
        (r"(?<x>secret)(?&x)", "recursion"),
        (r"(?x) secret", "verbose syntax"),
        (r"(?ix: secret)", "verbose syntax"),
        (r"(?:secret){e<=2}", "approximate matching"),
    ],
)
def test_a_pattern_that_cannot_be_run_is_refused_in_words(pattern, message):
    """The message says what is wrong, and never repeats the pattern."""
    with pytest.raises(ValueError, match=message) as caught:
        pattern_ends(pattern)
    assert "secret" not in str(caught.value)
    assert "ssss" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "pattern", [r"\(\?R", r"\\\(?xa", r"\p{Ideographic}+", r"\P{L}{2,}", r"a{1,99999}", r"(?<x>a)"]
)
def test_what_only_looks_refused_is_not(pattern):
    """An escaped bracket begins no recursion, a property is no approximation, and a largest count costs nothing."""
    assert pattern_ends(pattern)("text").tolist() == [4]


def test_the_longest_repetition_that_is_allowed_compiles():
    """As many characters as may be written out are."""
    body = "(?:ab|c)"
    count = MAX_WRITTEN_OUT // (len(body) + 7)
    assert pattern_ends(body + f"{{{count}}}")("c" * (count + 1)).tolist() == [count, count + 1]


def test_a_pattern_without_an_end_runs_out_of_time():
    """Exponential time ends in words that do not repeat the pattern or the text; from then on every text fails."""
    ends = pattern_ends("(secret|e|ee|eee)+?[bd]", timeout_s=0.05)
    assert ends("eeb").tolist() == [3]
    for text in ("e" * 4000 + "cb" * 2, "eeb"):
        with pytest.raises(ValueError, match=r"takes more than 0\.05 s on the texts of the request") as caught:
            ends(text)
        assert "secret" not in str(caught.value)
        assert "eee" not in str(caught.value)


def test_all_texts_share_the_time():
    """What earlier texts took is missing for later ones."""
    ends = pattern_ends("(e|ee)+?[bd]", timeout_s=0.3)
    text = "e" * 22 + "cb"
    assert ends(text).tolist() == [24]
    with pytest.raises(ValueError, match="takes more than"):
        list(map(ends, repeat(text)))


N_BUSY = 11
"""Threads that make the clock of the process run twelve times as fast as that of a thread which matches."""


@contextmanager
def busy_threads():
    """Threads that compute beside this one, without the lock of the interpreter."""
    over = threading.Event()

    def work():
        while not over.is_set():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000)

    threads = [threading.Thread(target=work) for _ in range(N_BUSY)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_what_other_threads_compute_is_not_laid_at_the_pattern():
    """A pattern that takes a quarter of its time is not too slow because the process is busy."""
    pattern, text = "(e|ee)+?[bd]", "e" * 24 + "cb"
    started = time.thread_time()
    expected = pattern_ends(pattern, timeout_s=60.0)(text).tolist()
    taken = time.thread_time() - started
    with busy_threads():
        assert pattern_ends(pattern, timeout_s=4.0 * taken)(text).tolist() == expected


def test_a_pattern_without_an_end_runs_out_of_time_in_a_busy_process():
    """Trying again has an end: when the thread has used its own time."""
    started = time.thread_time()
    with busy_threads(), pytest.raises(ValueError, match=r"takes more than 0\.05 s"):
        pattern_ends("(?:a|a)+$", timeout_s=0.05)("a" * 40 + "b")
    assert time.thread_time() - started > 0.05


def test_a_time_of_none_is_over_at_once():
    """Without any time no text is cut."""
    with pytest.raises(ValueError, match="takes more than 0 s"):
        pattern_ends("a", timeout_s=0.0)("a")
