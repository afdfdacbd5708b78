"""Lexicons: files of terms that become hotwords, and clear refusals of those that cannot."""

import os

import pytest

from common.errors import JobError
from common.lexicons import Lexicons
from common.options import Options


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "medical-terms-v1.txt").write_text(
        "# spelled as in our reports\nmetoprolol\n\n  atrial fibrillation \nmetoprolol\n"
    )
    return tmp_path


def refused(folder, name="medical-terms-v1", **options):
    with pytest.raises(JobError) as caught:
        Lexicons(folder).apply(Options(lexicon=name, **options))
    return caught.value


def test_terms_become_hotwords(folder):
    """The model gets them as text; whether a chunk was read with them shows in its options."""
    applied = Lexicons(folder).apply(Options(lexicon="medical-terms-v1", beam_size=1))

    assert applied == Options(hotwords="metoprolol, atrial fibrillation", beam_size=1)


def test_a_jobs_own_hotwords_come_first(folder):
    """They are about this recording."""
    applied = Lexicons(folder).apply(Options(lexicon="medical-terms-v1", hotwords="Dr. Dashwood"))

    assert applied.hotwords == "Dr. Dashwood, metoprolol, atrial fibrillation"


def test_without_a_lexicon_nothing_changes(tmp_path):
    """Nor is a folder asked for."""
    assert Lexicons(None).apply(Options(hotwords="a")) == Options(hotwords="a")
    assert Lexicons(tmp_path / "missing").apply(Options()) == Options()


def test_a_file_is_read_once_until_it_changes(folder, monkeypatch):
    """A consumer asks for each job; whoever adds a term does not restart consumers."""
    lexicons, path, wanted = Lexicons(folder), folder / "medical-terms-v1.txt", Options(lexicon="medical-terms-v1")
    lexicons.apply(wanted)
    monkeypatch.setattr("common.lexicons._read", lambda name, path: pytest.fail("read again"))
    lexicons.apply(wanted)
    monkeypatch.undo()

    path.write_text("bisoprolol\n")
    os.utime(path, ns=(1, 1))

    assert lexicons.apply(wanted).hotwords == "bisoprolol"
    path.unlink()
    assert refused(folder).type == "lexicon_unknown"


def test_an_unknown_name_says_which_are_known(folder):
    """It is a typing mistake, mostly."""
    error = refused(folder, "medical-terms-v2")

    assert (error.type, error.retryable) == ("lexicon_unknown", False)
    assert "medical-terms-v1" in error.detail


def test_without_a_folder_the_setting_is_named():
    """The operator must know what to set."""
    assert "STTREAM_LEXICONS_DIR" in refused(None).detail


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"# nothing but a comment\n", "no terms"),
        (b"caf\xe9\n", "no UTF-8 (byte 3)"),
        (b"#" * 70_000, "more than 65536 bytes"),
    ],
)
def test_a_file_that_is_no_list_of_terms_is_refused(folder, content, told):
    """Silently without its terms a transcript would be wrong where it matters."""
    (folder / "medical-terms-v1.txt").write_bytes(content)

    error = refused(folder)

    assert error.type == "lexicon_unreadable"
    assert told in error.detail


def test_more_than_the_model_takes_is_refused(folder):
    """It would cut the end off without a word."""
    (folder / "medical-terms-v1.txt").write_text("\n".join(f"term number {n}" for n in range(100)))

    error = refused(folder)

    assert error.type == "option_unsupported"
    assert "800" in error.detail


def test_a_folder_in_place_of_a_file_is_refused(folder):
    """A device or a fifo would hang whoever reads it."""
    (folder / "odd.txt").mkdir()

    assert refused(folder, "odd").type == "lexicon_unreadable"


@pytest.mark.parametrize("name", ["../secret", "a/b", ".hidden", "", "a" * 65, "a\n", "ä"])
def test_a_name_cannot_leave_the_folder(name):
    """It comes from clients."""
    with pytest.raises(ValueError, match="lexicon"):
        Options(lexicon=name)
