import re

import pytest

from creditd.cli.serve import open_weights
from creditd.server.settings import Settings, SettingsError, load_settings
from server.running import get


@pytest.fixture
def write(tmp_path):
    """A function that writes a TOML file and gives its path."""

    def inner(text):
        path = tmp_path / "creditd.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return inner


def keys_of(settings):
    """The configured keys in the clear."""
    return [key.get_secret_value() for key in settings.keys]


def test_without_a_file_the_defaults_hold():
    """Nothing needs to be set, and an unset service listens to its own machine only."""
    settings = load_settings(None)
    assert (settings.host, settings.port) == ("127.0.0.1", 8400)
    assert settings.api_keys == ()


def test_argument_over_variable_over_file(write, monkeypatch):
    """A setting is the argument's, else the variable's, else the file's; an argument of None is not given."""
    path = write('host = "10.0.0.1"\nport = 1\nmax_candidates = 5\n')
    monkeypatch.setenv("CREDITD_PORT", "2")
    monkeypatch.setenv("CREDITD_HOST", "10.0.0.2")
    settings = load_settings(path, port=3, host=None)
    assert (settings.host, settings.port, settings.max_candidates) == ("10.0.0.2", 3, 5)


def test_an_unknown_key_in_the_file_is_refused(write):
    """A misspelt setting is an error that names it."""
    with pytest.raises(SettingsError, match="max_candidate:"):
        load_settings(write("max_candidate = 5\n"))


def test_an_unknown_variable_is_refused(monkeypatch):
    """A misspelt variable is an error that names it: CREDITD_API_KEY must not leave a service open."""
    monkeypatch.setenv("CREDITD_API_KEY", "secret")
    with pytest.raises(SettingsError, match=r"(?i)api_key\b"):
        load_settings(None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"), ("port", "-1"), ("port", "x"), ("max_body_bytes", "1023"), ("max_requests_in_flight", "0"),
        ("compute_threads", "0"), ("compute_threads", "65"), ("request_timeout_s", "0"), ("drain_timeout_s", "-1"),
        ("max_inline_candidates", "-1"), ("max_held_bytes", "1"), ("body_timeout_s", "0"),
        ("max_candidates", "0"), ("max_candidates", "1001"), ("max_table_candidates", "21"),
        ("max_token_advantages", "0"), ("api_keys", ", ,"), ("api_keys", '[""]'),
        ("admin_keys", ", ,"), ("admin_keys", '[""]'), ("max_shard_bytes", "0"), ("max_weight_bytes", "-1"),
        ("weights_upload_ttl_s", "0"), ("weights_root", "/nowhere/at/all"), ("weights_spool", "/nowhere/at/all"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_name(name, value, monkeypatch):
    """A value out of range ends the start with the setting's name."""
    monkeypatch.setenv(f"CREDITD_{name.upper()}", value)
    with pytest.raises(SettingsError, match=name):
        load_settings(None)


def test_every_wrong_setting_is_named(write):
    """Two mistakes are two parts of one message."""
    with pytest.raises(SettingsError, match=r"(?s)(?=.*port)(?=.*max_candidates)"):
        load_settings(write("port = -1\nmax_candidates = 0\n"))


def test_a_message_does_not_show_a_key(monkeypatch):
    """Keys stay out of messages, right and wrong ones, and out of the settings' own text."""
    monkeypatch.setenv("CREDITD_API_KEYS", '["s3cret-key"]')
    monkeypatch.setenv("CREDITD_PORT", "x")
    with pytest.raises(SettingsError) as caught:
        load_settings(None)
    assert "s3cret-key" not in str(caught.value)
    monkeypatch.delenv("CREDITD_PORT")
    assert "s3cret-key" not in repr(load_settings(None))
    monkeypatch.setenv("CREDITD_API_KEYS", '["s3cret-key"')
    with pytest.raises(SettingsError, match="api_keys") as caught:
        load_settings(None)
    assert "s3cret-key" not in str(caught.value)


@pytest.mark.parametrize("text", ["one,two", "one, two,", "one\ntwo\n", '["one", "two"]'])
def test_keys_in_a_variable_are_separated_by_commas_or_lines(text, monkeypatch):
    """The plain form works, and so does a JSON list."""
    monkeypatch.setenv("CREDITD_API_KEYS", text)
    assert keys_of(load_settings(None)) == ["one", "two"]


def test_keys_of_a_file_add_to_the_others(tmp_path):
    """One key per line; blank lines and space around a key do not count."""
    keys = tmp_path / "keys"
    keys.write_text("one\n\n  two \r\n", encoding="utf-8")
    assert keys_of(load_settings(None, api_keys_file=keys, api_keys=("zero",))) == ["zero", "one", "two"]


def test_a_key_file_counts_however_the_settings_are_made(tmp_path):
    """An application made from settings that name a key file is closed, also without `load_settings`."""
    keys = tmp_path / "keys"
    keys.write_text("one\n", encoding="utf-8")
    assert get("/v1/info", api_keys_file=keys).status_code == 401


def test_a_key_file_that_cannot_be_used_is_refused(tmp_path):
    """A file that is absent or empty ends the start: it must not leave a service open."""
    with pytest.raises(SettingsError, match="absent"):
        load_settings(None, api_keys_file=tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.write_text("\n \n", encoding="utf-8")
    with pytest.raises(SettingsError, match="holds no key"):
        load_settings(None, api_keys_file=empty)


def test_admin_keys_are_keys_and_more(tmp_path, monkeypatch):
    """Admin keys come as the other keys do, and are let in where those are; the others may not replace weights."""
    keys = tmp_path / "keys"
    keys.write_text("three\n", encoding="utf-8")
    monkeypatch.setenv("CREDITD_ADMIN_KEYS", "one,two")
    settings = load_settings(None, admin_keys_file=keys, api_keys=("zero",))
    assert [key.get_secret_value() for key in settings.all_admin_keys] == ["one", "two", "three"]
    assert keys_of(settings) == ["zero", "one", "two", "three"]
    assert "SecretStr" in repr(settings)
    assert not {"one", "two", "three"} & set(re.findall(r"\w+", repr(settings)))


def test_an_admin_key_file_that_cannot_be_used_is_refused(tmp_path):
    """A file that is absent or empty ends the start."""
    with pytest.raises(SettingsError, match=r"admin_keys_file cannot be read.*absent"):
        load_settings(None, admin_keys_file=tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"admin_keys_file .* holds no key"):
        load_settings(None, admin_keys_file=empty)


POLICY = {"id": "policy", "kind": "policy", "path": "policy"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"models": (POLICY,)}, "everybody who can reach this service may replace the weights of policy"),
        ({"models": (POLICY,), "api_keys": ("k",)}, "nobody may replace the weights of policy"),
        ({"models": (POLICY,), "admin_keys": ("k",)}, None),
        ({"models": ({**POLICY, "kind": "reward"},)}, None),
        ({}, None),
    ],
)
def test_an_operator_is_told_who_may_replace_weights(settings, expected, tmp_path):
    """A policy without admin keys is worth a word at boot, and nothing else is."""
    found = open_weights(Settings(models_root=tmp_path, **settings))
    assert (found is None) if expected is None else found.startswith(expected)


def test_a_configuration_file_that_cannot_be_used_is_refused(tmp_path, write):
    """An absent file and one that is not TOML end the start."""
    with pytest.raises(SettingsError, match=r"absent\.toml"):
        load_settings(tmp_path / "absent.toml")
    with pytest.raises(SettingsError):
        load_settings(write("port = = 1"))


def test_settings_do_not_change():
    """Settings are read once."""
    settings = load_settings(None)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1
