"""The arithmetic of examples/scale.py, and that docs/scale.md shows what it prints."""

import importlib.util

import pytest

from tests import EXAMPLES, ROOT

spec = importlib.util.spec_from_file_location("scale", EXAMPLES / "scale.py")
scale = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scale)


def options(*given: str):
    return scale.get_parser().parse_args(given)


def test_one_gpu_exchanges_nothing():
    assert scale.exchange_ms(options(), "music_hubert", 4, 1, 1) == 0


def test_an_exchange_sends_twice_the_bytes_at_most():
    args = options("--nvlink", "100", "--network", "10")
    megabytes = 2 * scale.MILLION_PARAMETERS["music2vec"]
    assert scale.exchange_ms(args, "music2vec", 2, 1, 2) == pytest.approx(megabytes / 100)
    many = scale.exchange_ms(args, "music2vec", 2, 10_000, 10_000)
    assert many == pytest.approx(2 * megabytes * (1 / 100 + 1 / 10), rel=1e-3)


def test_steps_are_those_that_were_measured():
    for crops, measured in ((100, 48.6), (32, 17.8)):
        assert scale.compute_ms(options(), "music_hubert", crops) == pytest.approx(
            measured, abs=0.1
        )
    assert scale.compute_ms(options(), "music2vec", 100) == pytest.approx(68.2, abs=0.1)
    assert scale.compute_ms(options("--gpu-speed", "0.5"), "music2vec", 100) > 136


def test_twice_the_hours_are_half_the_epochs():
    once, twice = (dict(scale.one_run(options("--hours", hours))) for hours in ("1000", "2000"))
    assert once["rate"] == twice["rate"]
    assert once["run"].endswith("3555.6 epochs")
    assert twice["run"].endswith("1777.8 epochs")


@pytest.mark.parametrize("given", [[], ["--models"]])
def test_the_page_shows_what_is_printed(given, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["scale.py", *given])
    scale.main()
    assert capsys.readouterr().out in (ROOT / "docs" / "scale.md").read_text()


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        *(("--gpus-per-node", "0", "at least 1"), ("--crops", "0", "at least 1")),
        *(("--hours", "nan", "at least 0.001"), ("--network", "-1", "at least 0")),
    ],
)
def test_what_cannot_be_is_refused(option, value, wanted, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scale.py", option, value, "--models"])
    with pytest.raises(SystemExit, match="2"):
        scale.main()
    command = "python examples/scale.py --models"
    said = capsys.readouterr().err
    assert said == f"error: argument {option}: must be {wanted}\n{command}\n"
