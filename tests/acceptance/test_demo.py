"""`sttream demo`: what a newcomer sees first."""

import json
import re
import signal
import subprocess

import pytest

from tests.acceptance.stacks import COMMAND, EXAMPLES, environ, processes_of, sttream, words
from tests.ports import free_port


@pytest.fixture
def data(tmp_path):
    return tmp_path / "demo"


def demo(data, *arguments):
    """Run the demo on a port of its own: of two that find the usual one free at the same moment one is refused."""
    return sttream("demo", "--data-dir", str(data), "--port", str(free_port(8)), *arguments)


def test_the_demo_prints_the_words_of_every_clip(data):
    """After one command a newcomer reads what was said, and knows where to look further."""
    result = sttream("demo", "--data-dir", str(data))
    assert result.returncode == 0, result.stderr

    told = dict(re.findall(r"^(\S+\.\w+)   \d+\.\d s   \d+\.\d x real time\n  (.+)$", result.stdout, re.MULTILINE))
    spoken = json.loads((EXAMPLES / "references.json").read_text())
    assert told.keys() == spoken.keys()
    for clip, reference in spoken.items():
        heard = set(words(told[clip]))
        assert len(heard & set(words(reference))) >= 0.7 * len(set(words(reference))), (clip, told[clip])

    assert re.search(r"^5 clips, 24\.8 s of audio in [\d.]+ s: [\d.]+ x real time$", result.stdout, re.MULTILINE)
    for line in ("sttream up --data-dir", "curl", "redis-cli -p 8011 XPENDING '{sttream}:jobs:normal' transcribers"):
        assert line in result.stdout
    assert len(list((data / "results").glob("*.srt"))) == 5
    assert not processes_of(data)


def test_the_demo_as_json_is_one_object_a_clip(data, tmp_path):
    """Scripts compare texts and figures without reading a layout."""
    result = demo(data, str(_folder_with_one_clip(tmp_path)), "--json")
    [clip] = map(json.loads, result.stdout.splitlines())
    assert (clip["state"], "young man" in clip["transcript"]["text"]) == ("completed", True)


def test_the_demo_fails_when_a_clip_does(data, tmp_path):
    """A green demo means that every word was heard; otherwise the reason stands beside the clip."""
    folder = _folder_with_one_clip(tmp_path)
    (folder / "broken.mp3").write_text("not a recording\n" * 50)

    result = demo(data, str(folder))

    assert result.returncode == 1
    assert "broken.mp3   failed\n  failed: audio_unreadable: " in result.stdout
    assert "young man" in result.stdout


def test_a_refused_clip_does_not_keep_the_others_back(data, tmp_path):
    """A link that leads out of the folder is told beside the words of the other clips."""
    folder = _folder_with_one_clip(tmp_path)
    (folder / "outside.wav").symlink_to("/etc/hostname")

    result = demo(data.parent / "x" / ".." / "demo", str(folder))

    assert result.returncode == 1
    assert "outside.wav   refused\n  refused: source_outside_roots: " in result.stdout
    assert "young man" in result.stdout
    assert "2 clips, " in result.stdout
    assert f"tsv): {data / 'results'}" in result.stdout


def test_an_empty_folder_is_wrong_use(tmp_path):
    """The message says what was looked for, and nothing was started."""
    result = sttream("demo", str(tmp_path), "--data-dir", str(tmp_path / "demo"))
    assert result.returncode == 2
    assert f"no recordings in {tmp_path}" in result.stderr
    assert not (tmp_path / "demo").exists()


def test_ctrl_c_stops_the_demo_and_leaves_nothing(data):
    """Somebody who has seen enough is not left with five processes."""
    with subprocess.Popen(
        [*COMMAND, "demo", "--data-dir", str(data), "--port", str(free_port(8))],
        env=environ(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as demo:
        assert b"starting the embedded stack" in demo.stderr.readline()
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    assert not processes_of(data)


def _folder_with_one_clip(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "young-man.wav").write_bytes((EXAMPLES / "austen-2-young-man.wav").read_bytes())
    return folder
