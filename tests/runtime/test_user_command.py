"""Hints below errors must not end in errors of their own."""

from music_ssl_fairseq.runtime.user_command import similar


def test_a_path_is_corrected_name_by_name(tmp_path):
    (tmp_path / "runs/short").mkdir(parents=True)
    assert similar(tmp_path / "rnus/shrot") == str(tmp_path / "runs/short")
    assert similar(tmp_path / "elsewhere/short") == ""


def test_a_path_that_no_system_takes_is_like_none(tmp_path):
    (tmp_path / "file").touch()
    for name in ("a" * 300, "file/name", "nul\0l"):
        assert similar(tmp_path / name) == ""
