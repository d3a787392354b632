import sources


def test_the_digest_covers_what_a_run_executes():
    """The demonstration, the adapter, and creditd on both sides of the wire."""
    names = set(sources.files())
    assert {f"demo/{name}.py" for name in ("task", "model", "training", "plans", "live", "run")} <= names
    assert {"creditd/adapters/trl.py", "creditd/wire/v1.py"} <= names
    assert {"creditd/client/retry.py", "creditd/server/app.py", "creditd/credit/order_statistics.py"} <= names
    assert any(name.startswith("creditd/scoring/") for name in names)


def test_the_digest_changes_with_a_name_and_with_a_content(tmp_path):
    """One byte is enough, and the order of files is fixed."""
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("a = 1\n")
    other.write_text("a = 2\n")
    known = sources.digest({"one": one})
    assert known == sources.digest({"one": one})
    assert len({known, sources.digest({"one": other}), sources.digest({"other": one})}) == 3
    assert list(sources.files()) == sorted(sources.files())
