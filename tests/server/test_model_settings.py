from pathlib import Path

import pytest

from creditd.engines.model_spec import HeadChoice
from creditd.server.app import create_app
from creditd.server.settings import Settings, SettingsError, load_settings

ROOT = Path(__file__).resolve().parents[2]


def loaded(tmp_path, text, *, root=True):
    """The settings of a file whose models are below a directory of the test."""
    path = tmp_path / "creditd.toml"
    head = f'models_root = "{tmp_path}"\n' if root else ""
    path.write_text(head + text, encoding="utf-8")
    return load_settings(path)


def test_a_file_registers_models(tmp_path):
    """Each entry becomes what the engines take."""
    (tmp_path / "key").write_text("hidden-word\n")
    (tmp_path / "template").write_text("{{ messages }}")
    settings = loaded(
        tmp_path,
        f"""
        [[models]]
        id = "rm"
        path = "a"
        head = {{ margin = [1, 0], activation = "log_sigmoid" }}
        chat_template_file = "{tmp_path}/template"
        max_tokens = 512
        [[models]]
        id = "far"
        remote = {{ url = "http://127.0.0.1:8000/", model = "x", api_key_file = "{tmp_path}/key" }}
        """,
    )
    near, far = (model.spec() for model in settings.models)
    assert (near.id, near.path, near.kind, near.dtype, near.device) == ("rm", Path("a"), "reward", "float32", "cpu")
    assert near.head == HeadChoice(margin=(1, 0), activation="log_sigmoid")
    assert (near.chat_template, near.max_tokens, near.remote) == ("{{ messages }}", 512, None)
    assert (far.path, far.remote.url, far.remote.key) == (None, "http://127.0.0.1:8000", "hidden-word")
    assert "hidden-word" not in repr(far) + repr(settings)


def test_an_entry_says_what_may_be_remembered(tmp_path):
    """Absent, a model decides; a remote one with a revision may be remembered, and none has to be."""
    far = 'remote = { url = "http://h", model = "m" }\n'
    entries = (
        'path = "x"\n', 'path = "x"\ncache = false\n', 'path = "x"\ncache = true\n',
        far, f'{far}revision = "1"\n', f'{far}revision = "1"\ncache = true\n', f"{far}cache = false\n",
    )  # fmt: skip
    text = "".join(f'[[models]]\nid = "m{number}"\n{entry}' for number, entry in enumerate(entries))
    specs = [model.spec() for model in loaded(tmp_path, text).models]
    assert [spec.cache for spec in specs] == [None, False, True, None, None, True, False]
    assert [spec.is_remembered() for spec in specs] == [True, False, True, False, True, True, False]


def test_a_variable_registers_models(monkeypatch, tmp_path):
    """A JSON list in a variable does what the file does."""
    monkeypatch.setenv("CREDITD_MODELS", '[{"id": "rm", "path": "a"}]')
    monkeypatch.setenv("CREDITD_MODELS_ROOT", str(tmp_path))
    assert [model.id for model in load_settings(None).models] == ["rm"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('id = "a b"\npath = "x"', "models.0.id: .*letters, digits"),
        ('id = "a"', "exactly one of path and remote"),
        ('id = "a"\npath = "x"\nremote = { url = "http://h:1", model = "m" }', "exactly one of path and remote"),
        ('id = "a"\npath = "x"\nkind = "judge"', "models.0.kind"),
        ('id = "a"\npath = "x"\ndtype = "int8"', "models.0.dtype"),
        ('id = "a"\npath = "x"\ndevice = "tpu"', "models.0.device"),
        ('id = "a"\npath = "x"\nhead = { index = 0, margin = [1, 0] }', "an index or a margin: got both"),
        ('id = "a"\npath = "x"\nhead = { index = -1 }', "models.0.head.index"),
        ('id = "a"\npath = "x"\nurl = "http://x"', "models.0.url"),
        ('id = "a"\npath = "x"\nchat_template = "x"\nchat_template_file = "y"', "not both"),
        ('id = "a"\npath = "x"\nchat_template_file = "/nowhere"', "chat_template_file cannot be read"),
        ('id = "a"\nremote = { url = "ftp://h", model = "m" }', "expected http://host:port"),
        ('id = "a"\nremote = { url = "http://u:p@h", model = "m" }', "expected http://host:port"),
        ('id = "a"\nremote = { url = "http://h/classify", model = "m" }', "and nothing behind it"),
        ('id = "a"\nremote = { url = "http://h:99999", model = "m" }', "expected http://host:port"),
        ('id = "a"\nremote = { url = "http://h#x", model = "m" }', "expected http://host:port"),
        ('id = "a"\nremote = { url = "http://a b", model = "m" }', "expected http://host:port"),
        ('id = "a"\nremote = { url = "http://*.x", model = "m" }', "expected http://host:port"),
        ('id = "a"\nremote = { url = "http://h", model = "m", api_key_file = "/nowhere" }', "api_key_file cannot be"),
        ('id = "a"\nremote = { url = "http://h", model = "m", api_key_file = "/x", api_key = "y" }', "not both"),
        ('id = "a"\nremote = { url = "http://h" }', "models.0.remote.model"),
        (
            'id = "a"\ncache = true\nremote = { url = "http://h", model = "m" }',
            "models.0.*a remote model is remembered by its revision: expected one",
        ),
        ('id = "a"\npath = "x"\ncache = "sometimes"', "models.0.cache"),
        ('id = "a"\npath = "x"\n[[models]]\nid = "a"\npath = "y"', "two models are called a"),
    ],
)
def test_an_entry_that_cannot_be_is_refused_by_name(tmp_path, entry, message):
    """Nothing is loaded by settings that contradict themselves."""
    with pytest.raises(SettingsError, match=message):
        loaded(tmp_path, f"[[models]]\n{entry}\n")


def test_models_are_below_a_directory_that_is_there(tmp_path):
    """A path needs the root, and the root has to exist."""
    with pytest.raises(SettingsError, match="need models_root"):
        loaded(tmp_path, '[[models]]\nid = "a"\npath = "x"\n', root=False)
    with pytest.raises(SettingsError, match="models_root is no directory"):
        loaded(tmp_path, 'models_root = "/no/where"\n', root=False)


def test_an_application_does_not_forget_its_models(tmp_path):
    """Settings that name models need resources that hold them."""
    settings = Settings(models_root=tmp_path, models=[{"id": "rm", "path": "a"}])
    with pytest.raises(ValueError, match="not loaded: rm"):
        create_app(settings)


def test_the_example_of_the_repository_is_valid(tmp_path, monkeypatch):
    """deploy/models.toml is what the settings take, but for the files of its machine."""
    text = (ROOT / "deploy/models.toml").read_text().replace("/run/secrets/vllm", str(tmp_path / "key"))
    (tmp_path / "key").write_text("k")
    monkeypatch.setenv("CREDITD_MODELS_ROOT", str(tmp_path))
    settings = loaded(tmp_path, text, root=False)
    assert [model.id for model in settings.models] == ["rm", "rm-margin", "embeddings", "rm-remote"]
