"""The notebooks run from top to bottom, on small music, and are committed without outputs."""

import json

import pytest

from tests import EXAMPLES, checkpoints, tiny
from tests.audio_files import write_tone

NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """Make the quickstart's results: music in folders, and a trained model."""
    folder = tmp_path_factory.mktemp("notebooks")
    for number in range(16):
        name = f"{number % 2}/{number}.flac"
        write_tone(folder / "music" / name, 2.0, seed=number)
    path = folder / "quickstart/runs/tiny/music_hubert/checkpoints/checkpoint_best.pt"
    path.parent.mkdir(parents=True)
    checkpoints.write(path, "music_hubert", tiny.music_hubert())
    (folder / "quickstart/music_dir").write_text(f"{folder / 'music'}\n")
    return folder


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file, quickstart, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    notebook = json.loads(file.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    monkeypatch.chdir(quickstart)
    names: dict = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            exec(compile("".join(cell["source"]), f"{file.name}, {cell['id']}", "exec"), names)
    pyplot.close("all")
    if file.stem == "songs":
        assert names["similarity"].shape == (16, 16)
        assert (quickstart / "quickstart/song_map.html").stat().st_size > 50_000
    else:
        assert len(names["results"]) == 2
        assert (quickstart / "quickstart/notebook/probes/report/report.html").exists()


def test_there_are_two_notebooks():
    assert [file.stem for file in NOTEBOOKS] == ["probe", "songs"]
