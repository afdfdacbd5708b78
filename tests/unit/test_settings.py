"""Settings: wrong ones stop the process with a message that says which and why."""

import re
from pathlib import Path

import pytest

from common.errors import SettingsError
from common.settings import Settings, load_settings, origins, variable_of


def test_folders_are_separated_as_in_path():
    """`STTREAM_AUDIO_ROOTS` is typed by hand in unit files: it reads like PATH."""
    assert load_settings({"STTREAM_AUDIO_ROOTS": "/calls:/meetings"}).audio_roots == (Path("/calls"), Path("/meetings"))


def test_a_value_may_come_from_a_file(tmp_path):
    """Container secrets are files, not variables."""
    secret = tmp_path / "url"
    secret.write_text("postgresql+asyncpg://sttream:hush@db/sttream\n")

    settings = load_settings({"STTREAM_DATABASE_URL_FILE": str(secret)})

    assert settings.database_url.get_secret_value() == "postgresql+asyncpg://sttream:hush@db/sttream"
    assert origins({"STTREAM_DATABASE_URL_FILE": str(secret)})["database_url"] == "STTREAM_DATABASE_URL_FILE"


def test_plain_redis_url_is_read_and_ours_goes_before_it():
    """Platforms inject REDIS_URL."""
    assert load_settings({"REDIS_URL": "redis://a"}).redis_url.get_secret_value() == "redis://a"
    both = {"REDIS_URL": "redis://a", "STTREAM_REDIS_URL": "redis://b"}
    assert load_settings(both).redis_url.get_secret_value() == "redis://b"


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"STTREAM_LEAZE_MS": "1"}, "unknown variable STTREAM_LEAZE_MS (did you mean STTREAM_LEASE_MS?)"),
        ({"STTREAM_SLOTS": "many"}, "STTREAM_SLOTS: Input should be a valid integer"),
        ({"STTREAM_RENEW_MS": "9999"}, "STTREAM_RENEW_MS=9999 leaves no room for two failed renewals"),
        ({"STTREAM_QUEUE": "a{b}"}, "STTREAM_QUEUE"),
        ({"STTREAM_REDIS_URL": "http://x"}, "STTREAM_REDIS_URL: expected redis://HOST:PORT/DB"),
        ({"STTREAM_REDIS_URL": "redis+sentinel://a,b"}, "STTREAM_REDIS_URL: no service is named"),
        ({"STTREAM_DATABASE_URL": "mysql://x/y"}, "STTREAM_DATABASE_URL: expected sqlite+aiosqlite:///FILE"),
        ({"STTREAM_MODEL_FILE": "/does/not/exist"}, "STTREAM_MODEL_FILE=/does/not/exist cannot be read"),
        ({"STTREAM_MODEL": "a", "STTREAM_MODEL_FILE": "/b"}, "both STTREAM_MODEL and STTREAM_MODEL_FILE are set"),
    ],
)
def test_a_wrong_setting_is_named(environ, says):
    """A typing mistake must not start a service with other settings than its operator believes."""
    with pytest.raises(SettingsError, match=re.escape(says)):
        load_settings(environ)


def test_secrets_never_print():
    """Settings are logged and shown by `sttream config`."""
    settings = load_settings({"STTREAM_REDIS_URL": "redis://:hush@host"})

    assert "hush" not in repr(settings)
    assert "hush" not in settings.model_dump_json()


def test_the_settings_page_lists_every_setting_with_its_default():
    """`docs/settings.md` is a contract: operators copy from it."""
    page = Path("docs/settings.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(STTREAM_\w+)` \|[^|]*\| (.*?) \|$", page, re.MULTILINE))

    assert rows == {variable_of(name): field.description for name, field in Settings.model_fields.items()}
