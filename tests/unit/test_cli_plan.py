"""What `sttream up` decides before anything starts."""

import os
import socket
from pathlib import Path

import pytest

from common.errors import SettingsError
from deploy.datadir import DataDir, hold
from deploy.errors import StackRefused
from deploy.plan import ignored, make_plan
from tests.ports import free_port


@pytest.fixture
def plan(tmp_path):
    def plan(environ=None, **options):
        wanted = {"host": "127.0.0.1", "port": None, "data_dir": tmp_path / "data", "consumers": 2, "audio": []}
        return make_plan(**wanted | options, environ=environ or {})

    return plan


def test_services_share_the_stacks_own_server_and_folders(plan, tmp_path):
    """A REDIS_URL left in the shell must not lead half of a local stack to production."""
    found = plan({"REDIS_URL": "redis://production", "STTREAM_REDIS_URL_FILE": "/x", "STTREAM_RESULTS_DIR": "/x"})
    assert found.settings.redis_url.get_secret_value() == f"redis://127.0.0.1:{found.port + 1}/0"
    assert found.settings.results_dir == tmp_path / "data" / "results"
    assert "REDIS_URL" not in found.environ


def test_what_is_not_used_is_named():
    """Somebody who set a variable learns that it has no effect here."""
    environ = {"REDIS_URL": "redis://a", "STTREAM_HTTP_PORT": "", "STTREAM_URL_FILE": "/x", "STTREAM_MODEL": "base"}
    assert ignored(environ) == ["REDIS_URL", "STTREAM_URL_FILE"]


def test_other_settings_are_the_users(plan):
    """`STTREAM_MODEL=large-v3 sttream up` runs that model."""
    found = plan({"STTREAM_MODEL": "base", "STTREAM_LEASE_MS": "20000", "STTREAM_AUDIO_ROOTS": "/calls"})
    assert (found.settings.model, found.settings.lease_ms) == ("base", 20_000)
    assert found.settings.audio_roots == (Path("/calls"),)


def test_by_default_the_bundled_model_runs_on_the_cpu_on_recordings_below_this_folder(plan):
    """Without any set-up it works, and sees no more of the disk than where it was started."""
    settings = plan().settings
    assert (settings.model, settings.device, settings.audio_roots) == ("bundled", "cpu", (Path.cwd(),))


def test_audio_folders_of_the_command_line_go_before_the_environment(plan, tmp_path):
    """What is typed now counts more than what was exported once."""
    found = plan({"STTREAM_AUDIO_ROOTS_FILE": "/x", "STTREAM_AUDIO_ROOTS": "/calls"}, audio=[tmp_path, Path("/b")])
    assert found.settings.audio_roots == (tmp_path, Path("/b"))


def test_a_wrong_setting_stops_before_the_first_process(plan):
    """One clear line is better than four services that each refuse in their logs."""
    with pytest.raises(SettingsError, match="STTREAM_LEASE_MS"):
        plan({"STTREAM_LEASE_MS": "soon"})


@pytest.mark.parametrize(("offset", "whose"), [(0, "the producer"), (1, "the embedded server")])
def test_a_taken_port_is_named(plan, offset, whose):
    """Two stacks on one machine is the usual reason; the message says which option helps."""
    port = free_port(2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port + offset))
        other.listen()
        with pytest.raises(StackRefused, match=rf"{whose} cannot listen on 127.0.0.1 port {port + offset}: .*\(--port"):
            plan(port=port)


def test_each_service_has_a_health_port_of_its_own(plan):
    """Two consumers on one machine cannot share one."""
    found = plan()
    assert len({found.port, found.redis_port, *found.metrics_ports}) == 5
    assert found.services == ("producer", "consumer-1", "consumer-2", "writer")


def test_a_data_folder_serves_one_stack(tmp_path):
    """Two servers writing one append-only file would destroy it."""
    data = DataDir(tmp_path / "data")
    data.make()
    assert data.path.stat().st_mode & 0o777 == 0o700
    with hold(data), pytest.raises(StackRefused, match=f"in use by the stack of process {os.getpid()};"), hold(data):
        pytest.fail("held twice")
    with hold(data), pytest.raises(StackRefused, match="in use by the stack of process"):
        data.require_free()
    with hold(data):
        pass


def test_a_data_folder_that_cannot_be_made_is_refused(tmp_path):
    """A read-only disk is named before a server fails on it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StackRefused, match="cannot be made"):
        DataDir(tmp_path / "file" / "data").make()


@pytest.mark.parametrize("name", ["with blank", "50%41", "what?", "#1", "ü"])
def test_any_folder_name_makes_a_database_url(tmp_path, name):
    """A folder's name may hold what means something else in a URL."""
    from sqlalchemy import make_url

    data = DataDir(tmp_path / name)
    assert make_url(data.database_url).database == str(tmp_path / name / "sttream.db")
