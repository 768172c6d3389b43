"""`manifests_tools fetch`: from a server on loopback, in parts, with checksums."""

import hashlib
import io
import json
import tarfile

import pytest

from manifests_tools import fetch
from manifests_tools.__main__ import BUILDERS
from music_ssl_fairseq.errors import InputError
from tests.file_server import serve
from tests.options import with_defaults

CONTENT = bytes(range(256)) * 20_000


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file.bin").write_bytes(CONTENT)
    with serve(tmp_path / "served") as running:
        running.folder = tmp_path / "served"
        yield running


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_continues(ranges, server, tmp_path):
    server.ranges, server.cut = ranges, 3_000_000
    file = tmp_path / "to" / "file.bin"
    fetch.download(f"{server.url}/file.bin", file, md5(CONTENT))
    assert file.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=3000000-"]
    assert [path.name for path in file.parent.iterdir()] == ["file.bin"]


def test_what_was_whole_is_not_asked_for_again(server, tmp_path):
    file = tmp_path / "file.bin"
    (tmp_path / "file.bin.part").write_bytes(CONTENT)  # killed before it was renamed
    for _ in range(2):
        fetch.download(f"{server.url}/file.bin", file, md5(CONTENT))
    assert len(server.requests) == 1
    file.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"file\.bin: another file than http"):
        fetch.download(f"{server.url}/file.bin", file, md5(CONTENT))


def test_a_server_that_fails_keeps_what_is_here(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    server.failures = 5
    with pytest.raises(
        InputError,
        match=r"503.*file\.bin\.part has what was downloaded, and the same command continues",
    ):
        fetch.download(f"{server.url}/file.bin", tmp_path / "file.bin", md5(CONTENT))
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:1000]
    server.requests.clear()
    with pytest.raises(InputError, match="404"):
        fetch.download(f"{server.url}/none", tmp_path / "none", md5(b""))
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.failures, server.failure = 3, 429
    fetch.download(f"{server.url}/file.bin", tmp_path / "file.bin", md5(CONTENT))
    server.failures, server.failure = 1, 403
    with pytest.raises(InputError, match=r"403: Forbidden$"):
        fetch.download(f"{server.url}/file.bin", tmp_path / "other.bin", md5(CONTENT))


def test_other_bytes_are_refused_and_removed(server, tmp_path):
    with pytest.raises(InputError, match=r"has another MD5 than .* and was removed"):
        fetch.download(f"{server.url}/file.bin", tmp_path / "file.bin", md5(b"other"))
    assert not list(tmp_path.glob("file.bin*"))


@pytest.fixture
def gtzan(server, tmp_path, monkeypatch):
    """mirdata's GTZAN, of two excerpts, on the server."""
    core = pytest.importorskip("mirdata.core")
    from mirdata import download_utils
    from mirdata.datasets import gtzan_genre

    songs = {f"gtzan_genre/genres/blues/blues.0000{i}.wav": b"audio %d" % i for i in range(2)}
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as tar:
        for name, data in songs.items():
            member = tarfile.TarInfo(name.removeprefix("gtzan_genre/"))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (server.folder / "genres.tar.gz").write_bytes(memory.getvalue())
    tracks = {
        name[-15:-4]: {"audio": [name, md5(data)], "beats": ["not/asked/for", "0"]}
        for name, data in songs.items()
    }
    index = json.dumps({"version": "1.0", "tracks": tracks}).encode()
    (server.folder / "index.json").write_bytes(index)
    folder = tmp_path / "indexes"
    monkeypatch.setattr(core.Index, "indexes_dir", str(folder), raising=False)

    def remote(name: str, destination: str) -> download_utils.RemoteFileMetadata:
        data = (server.folder / name).read_bytes()
        return download_utils.RemoteFileMetadata(
            name, f"{server.url}/{name}", md5(data), destination
        )

    monkeypatch.setitem(gtzan_genre.REMOTES, "all", remote("genres.tar.gz", "gtzan_genre"))
    known = core.Index("index.json", f"{server.url}/index.json", md5(index), ["all"])
    known.indexes_dir = str(folder)
    known.remote = remote("index.json", str(folder))
    monkeypatch.setitem(gtzan_genre.INDEXES, "1.0", known)
    return songs


def test_mirdata_s_set_is_unpacked_and_compared(gtzan, server, tmp_path, capsys):
    server.cut = 100
    for _ in range(2):
        with_defaults(fetch)("gtzan-genre", str(tmp_path / "to"))
        for name, data in gtzan.items():
            assert (tmp_path / "to" / name).read_bytes() == data
    assert [path for path, _ in server.requests] == ["/index.json"] * 2 + ["/genres.tar.gz"]
    said = capsys.readouterr().out
    assert "checksums are right (all); 2 tracks have parts that were not asked for" in said
    assert f"next: python -m manifests_tools gtzan-genre --root {tmp_path}/to" in said


def test_a_file_that_is_not_as_in_the_index_is_named(gtzan, tmp_path, monkeypatch):
    name = next(iter(gtzan))
    with_defaults(fetch)("gtzan-genre", str(tmp_path / "to"))
    from mirdata.core import Dataset

    monkeypatch.setattr(Dataset, "download", lambda self, **_: None)  # would unpack it again
    (tmp_path / "to" / name).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"blues\.00000\.wav: not as in mirdata's index"):
        with_defaults(fetch)("gtzan-genre", str(tmp_path / "to"))


@pytest.mark.parametrize("name", [name for name, which in fetch.SETS.items() if not which.mirdata])
def test_other_sets_have_steps_with_sizes(name, capsys):
    assert name in BUILDERS
    with_defaults(fetch)(name, "some where")
    said = capsys.readouterr().out
    assert "GB). It is to be fetched by hand:" in said
    assert "mkdir -p 'some where'; cd 'some where'" in said
    assert f"next: python -m manifests_tools {name} --root 'some where'" in said


def test_every_probing_task_is_known():
    assert set(fetch.SETS) == set(BUILDERS) - {"pretrain", "check", "fetch", "custom"}
