"""What libsndfile does not read, or not to its end: other formats, seeks in them, wrong headers."""

import multiprocessing
import signal
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from manifests_tools.examine import examine
from music_ssl_fairseq import audio
from music_ssl_fairseq.audio.headers import AudioHeader
from music_ssl_fairseq.audio.pyav import opened
from music_ssl_fairseq.errors import AudioError
from tests.audio_files import PYAV, encode, tone, write_tone

SECONDS = 6  # more than the lead that decoders get after a seek


def formats_and_rates():
    yield from ((suffix, 44_100) for suffix in (".mp3", *PYAV) if suffix != ".webm")
    yield from ((".webm", 48_000), (".mp3", 16_000), (".m4a", 16_000), (".wv", 16_000))


def delay(read: np.ndarray, written: np.ndarray) -> int:
    """Samples by which one is behind the other."""
    size = 1 << 18
    product = np.fft.rfft(read, size) * np.fft.rfft(written, size).conj()
    lag = int(np.fft.irfft(product).argmax())
    return lag - size if lag > size // 2 else lag


@pytest.mark.parametrize(("suffix", "rate"), formats_and_rates())
def test_crops_are_parts_of_the_whole_in_any_order(tmp_path, suffix, rate):
    path = write_tone(tmp_path / f"x{suffix}", SECONDS, rate, channels=2, seed=rate)
    info = audio.probe(path)
    whole = audio.read(path)
    assert info.sample_rate == rate
    assert whole.dtype == np.float32
    assert len(whole) == info.length_at()
    assert len(audio.read(path, sample_rate=rate)) == info.num_samples
    last = len(whole) - 4_000
    for start, length in ((last, 8_000), (40_000, 16_000), (55_000, 30_000), (160, 400), (last, 9)):
        crop = audio.read(path, start, length)
        np.testing.assert_array_equal(crop, whole[start : start + length])
    assert len(audio.read(path, len(whole) + 5, 100)) == 0


@pytest.mark.parametrize(("suffix", "rate"), formats_and_rates())
def test_the_whole_is_what_was_written(tmp_path, suffix, rate):
    path = write_tone(tmp_path / f"x{suffix}", 3, rate, seed=rate)
    read, written = audio.read(path), audio.resample(tone(3, rate, seed=rate)[:, 0], rate)
    # Bare streams do not state the encoder's delay, which is two frames at most.
    lag = delay(read, written)
    bare = suffix in (".aac", ".ac3", ".wma", ".mp2")
    assert abs(lag) <= (4_200 * 16_000 / rate if bare else 0)
    read, written = read[max(0, lag) :], written[max(0, -lag) :]
    size = min(len(read), len(written))
    assert size > 2.8 * 16_000
    assert np.corrcoef(read[:size], written[:size])[0, 1] > 0.98


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("container", ["ipod", "matroska"])
def test_alac(tmp_path, container, rate):
    path = encode(tmp_path / "x.m4a", tone(SECONDS, rate, 2), rate, container, "alac")
    assert audio.probe(path) == audio.AudioInfo(SECONDS * rate, rate, 2)
    expected = audio.resample(tone(SECONDS, rate, 2).mean(axis=1), rate)
    np.testing.assert_allclose(audio.read(path), expected, atol=2e-4)
    np.testing.assert_array_equal(audio.read(path, 70_000, 9_000), audio.read(path)[70_000:79_000])


def without_info_frame(path, bit_rate="constant", level=0.5, rate=44_100):
    """An MP3 as encoders write it to a pipe: no frame that states its length."""
    waveform = tone(SECONDS, rate)
    waveform[: len(waveform) // 2] *= 0.001  # so that a variable bit rate varies
    mode = bit_rate.upper()
    soundfile.write(path, waveform, rate, format="MP3", bitrate_mode=mode, compression_level=level)
    data = path.read_bytes()
    assert (b"Xing" if mode == "VARIABLE" else b"Info") in data[:300]
    second = data.index(data[:2], 4)
    path.write_bytes(data[second:])
    return path


def test_eight_channels(tmp_path):
    """PyAV 18 has no end to their planes, and crashed."""
    written = tone(2, 48_000, channels=8)
    path = tmp_path / "x.opus"
    soundfile.write(path, written, 48_000, format="OGG", subtype="OPUS")
    read = audio.read(path, sample_rate=48_000)
    assert audio.probe(path).channels == 8
    assert np.corrcoef(read, written.mean(axis=1))[0, 1] > 0.98


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("bit_rate", ["constant", "variable"])
def test_mp3_that_does_not_state_its_length(tmp_path, bit_rate, rate):
    path = without_info_frame(tmp_path / "x.mp3", bit_rate, rate=rate)
    info = audio.probe(path)
    assert 0 <= info.num_samples - SECONDS * rate < 4 * 1152
    whole = audio.read(path)
    assert len(whole) == info.length_at()
    for start in (20_000, 50_000, 90_000):
        np.testing.assert_array_equal(audio.read(path, start, 3_000), whole[start : start + 3_000])
    art = bytes(400_000)
    size = bytes(len(art) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\x00\x00" + size + art + path.read_bytes())
    assert audio.probe(path) == info
    np.testing.assert_array_equal(audio.read(path, 50_000, 3_000), whole[50_000:53_000])


@pytest.mark.parametrize("suffix", [".mp3", ".flac", ".wav", ".aiff", ".au", ".m4a", ".wv", ".mka"])
def test_a_truncated_file_is_never_a_shorter_one(tmp_path, suffix):
    path = write_tone(tmp_path / f"x{suffix}", SECONDS, 44_100, channels=1)
    if suffix == ".m4a":
        options = {"movflags": "faststart"}
        encode(path, tone(SECONDS, 44_100), 44_100, "ipod", "aac", options=options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    for function in (audio.read, audio.probe):
        if function is audio.probe and suffix == ".flac":
            continue  # its header is believed: the end is decoded by whoever examines it
        with pytest.raises(AudioError, match="truncated"):
            function(path)


def test_mac_side_car(tmp_path):
    path = without_info_frame(tmp_path / "song.mp3")
    expected = audio.read(path)
    entry = struct.pack(">II16sHIII", 0x51607, 0x20000, b"Mac OS X        ", 1, 9, 38, 32)
    (tmp_path / "._song.mp3").write_bytes(entry + bytes(4_000))
    np.testing.assert_array_equal(audio.read(path), expected)


def with_data_size(path, size):
    with path.open("r+b") as file:
        file.seek(file.read(4_096).index(b"data") + 4)
        file.write(struct.pack("<I", size))


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_F000, 0xFFFF_FFFF - 36])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_wav_of_a_pipe_that_did_not_know_its_length(tmp_path, size, subtype):
    path = tmp_path / "x.wav"
    soundfile.write(path, tone(SECONDS, 44_100, 2), 44_100, subtype=subtype)
    expected = audio.read(path)
    with_data_size(path, size)
    assert audio.probe(path).num_samples == SECONDS * 44_100
    np.testing.assert_array_equal(audio.read(path), expected)
    np.testing.assert_array_equal(audio.read(path, 60_000, 9_000), expected[60_000:69_000])


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (1_000, "states a wrong length: 1000 bytes of samples, but 191000 more follow"),
        (192_000 + 5_000, "truncated: its header says 197000 bytes of samples, but the file ends"),
    ],
)
def test_wav_with_a_wrong_size(tmp_path, size, reason):
    path = write_tone(tmp_path / "x.wav", SECONDS)
    with_data_size(path, size)
    for function in (audio.read, audio.probe):
        with pytest.raises(AudioError, match=reason):
            function(path)


def test_wav_beyond_4_gib(tmp_path):
    """32 bits hold the size's remainder. The file is sparse: it takes no room."""
    path = write_tone(tmp_path / "x.wav", 1, 192_000, channels=2)
    end = tone(0.5, 192_000, 2)
    frames = (1 << 30) + 96_000  # of 4 bytes
    with path.open("r+b") as file:
        start = file.seek(0, 2)
        header = start - 192_000 * 4
        file.seek(header + (frames - len(end)) * 4)
        file.write((end * 32767).astype("<i2").tobytes())
        file.write(b"LIST" + struct.pack("<I", 4) + b"INFO")
    with_data_size(path, frames * 4 - (1 << 32))
    assert audio.probe(path).num_samples == frames
    tail = audio.read(path, frames - 1_000, 2_000, 192_000)
    np.testing.assert_allclose(tail, end[-1_000:].mean(axis=1), atol=1e-4)


def test_chunks_behind_the_samples_are_fine(tmp_path):
    path = write_tone(tmp_path / "x.wav", 1)
    for more in (
        b"LIST" + struct.pack("<I", 3_000) + bytes(3_000),
        bytes(900),
        b"TAG" + bytes(2_000),
    ):
        content = path.read_bytes()
        path.write_bytes(content + more)
        assert audio.probe(path).num_samples == 16_000
        path.write_bytes(content)


def test_flac_that_states_no_length(tmp_path):
    path = write_tone(tmp_path / "x.flac", SECONDS)
    expected = audio.read(path)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # 36 bits of the STREAMINFO block
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert audio.probe(path).num_samples == SECONDS * 16_000
    np.testing.assert_array_equal(audio.read(path), expected)
    np.testing.assert_array_equal(audio.read(path, 60_000, 9_000), expected[60_000:69_000])


def test_flac_with_a_damaged_frame_is_refused_whoever_decodes_it(tmp_path):
    path = write_tone(tmp_path / "x.flac", SECONDS)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3_000] = bytes(3_000)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="damaged or truncated"):
        audio.read(path)


@pytest.mark.parametrize("place", [0, 0.5, 1], ids=["first", "middle", "last"])
def test_ffmpeg_passes_over_no_frame_of_flac(tmp_path, place):
    path = write_tone(tmp_path / "x.flac", SECONDS)
    content = bytearray(path.read_bytes())
    first = content.index(b"\xff\xf8")
    start = int((len(content) - first - 3_000) * place) + first + 100
    content[start : start + 2_000] = bytes(2_000)
    path.write_bytes(content)
    with (
        pytest.raises(AudioError, match="damaged"),
        opened(str(path), AudioHeader(soundfile=False), ()) as decoder,
    ):
        decoder.read(0, None)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        *((".wav", "G721_32"), (".wav", "NMS_ADPCM_16"), (".wav", "GSM610"), (".aiff", "GSM610")),
        *((".au", "G723_24"), (".wav", "IMA_ADPCM"), (".wav", "MS_ADPCM"), (".caf", "ALAC_16")),
    ],
)
def test_crops_where_a_sample_follows_from_those_before(tmp_path, suffix, codec):
    path = tmp_path / f"x{suffix}"
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
    soundfile.write(path, tone(3)[:, 0] + noise, 16_000, subtype=codec)
    whole = audio.read(path)
    for start in (1, 7_777, 20_001):
        np.testing.assert_array_equal(audio.read(path, start, 5_000), whole[start : start + 5_000])


def cut_ogg(path):
    """Vorbis as `ffmpeg -ss 1.5 -c copy` cuts it: its first page begins before its first sample."""
    write_tone(path, SECONDS, 44_100)
    pages = path.read_bytes().split(b"OggS\0")[1:]
    start = int.from_bytes(pages[3][1:9], "little") + 9_000
    for number, page in enumerate(pages):
        end = max(0, int.from_bytes(page[1:9], "little") - start)
        head = page[:1] + end.to_bytes(8, "little") + page[9:17] + bytes(4)
        pages[number] = b"OggS\0" + head + page[21:]
    path.write_bytes(b"".join(map(with_checksum, pages[:2] + pages[4:])))


def with_checksum(page):
    """An Ogg page with its CRC-32: polynomial 04c11db7, the first bit first."""
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = crc << 1 ^ (0x104C11DB7 if crc & 0x80000000 else 0)
    return page[:22] + struct.pack("<I", crc) + page[26:]


def flac_in_ogg(path):
    encode(path, tone(SECONDS, 48_000), 48_000, "ogg", "flac")


def longer_than_stated(path):
    """An MP3 whose first frame states half of its frames, as of two files in succession."""
    write_tone(path, SECONDS, 44_100)
    content = bytearray(path.read_bytes())
    place = max(content.find(b"Xing"), content.find(b"Info")) + 8
    number = int.from_bytes(content[place : place + 4], "big")
    content[place : place + 4] = (number // 2).to_bytes(4, "big")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "name"), [(cut_ogg, "x.ogg"), (flac_in_ogg, "x.ogg"), (longer_than_stated, "x.mp3")]
)
def test_crops_of_files_in_which_decoders_seek_wrongly(tmp_path, make, name):
    path = tmp_path / name
    make(path)
    whole = audio.read(path)
    assert len(whole) == audio.probe(path).length_at()
    for start in (
        *range(1_000, len(whole) - 500, 9_000),
        *range(len(whole) - 9_000, len(whole), 700),
    ):
        np.testing.assert_array_equal(audio.read(path, start, 400), whole[start : start + 400])


@pytest.mark.parametrize("suffix", [".au", ".snd"])
@pytest.mark.parametrize(
    "head", [b"# Notes\n" * 99, b".snd" + bytes(20), b".snd\0\0\0\1" + bytes(99)]
)
def test_a_name_does_not_make_it_audio(tmp_path, suffix, head):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(head + bytes(range(256)) * 99)
    with pytest.raises(AudioError, match=r"no known format|header is damaged"):
        audio.probe(path)


def test_thorough_compares_what_is_stated_with_what_is_decoded(tmp_path, monkeypatch):
    path = write_tone(tmp_path / "x.wav", 1)
    info = audio.probe(path)
    assert examine(str(path), thorough=True) == (info, False)
    more = replace(info, num_samples=info.num_samples + 100)
    monkeypatch.setattr(audio, "probe", lambda path: more)
    with pytest.raises(AudioError, match="damaged: of 16100 samples 16000 are decoded"):
        examine(str(path), thorough=True)


@pytest.mark.parametrize("rate", [1, 999, 655_349, 768_001, 10**6, 10**8])
def test_absurd_sample_rates_are_refused_at_the_header(tmp_path, rate):
    path = write_tone(tmp_path / "x.wav", 1)
    content = path.read_bytes()
    path.write_bytes(content[:24] + struct.pack("<I", rate) + content[28:])
    for function in (audio.read, audio.probe):
        with pytest.raises(AudioError, match="states a sample rate of"):
            function(path)


def test_a_signal_while_an_mp3_is_encoded_is_not_lost(rng):
    def stop(*_):
        raise InterruptedError

    waveform = rng.standard_normal(20 * 16_000, np.float32)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError):
            audio.mp3(waveform, 16_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_seeks_in_mp3_of_low_rate_print_nothing(tmp_path):
    path = write_tone(tmp_path / "x.mp3", SECONDS)
    code = "import sys; from music_ssl_fairseq import audio\n"
    code += "for start in range(500, 60_000, 1_500): audio.read(sys.argv[1], start, 3_000)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("suffix", [".mp3", ".m4a", ".wma"])
def test_a_playlist_or_a_stub_opens_nothing_else(tmp_path, suffix):
    song = write_tone(tmp_path / "song.mp3", 2)
    path = tmp_path / f"x{suffix}"
    for content in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{song}\n#EXT-X-ENDLIST\n".encode(),
        f"ffconcat version 1.0\nfile {song}\n".encode(),
        b"\0\0\0\x20ftypM4A " + bytes(2_000),
    ):
        path.write_bytes(content)
        with pytest.raises(AudioError, match=r"not readable as audio \(FFmpeg: "):
            audio.read(path)


def test_names_with_colons_and_beyond_utf_8(tmp_path):
    path = write_tone(tmp_path / "x.mp3", 1)
    name = str(tmp_path / "http:caf\udce9.mp3")
    path.rename(name)
    assert len(audio.read(name)) == 16_000


def read_in_a_fork(path, start, queue):
    queue.put(audio.read(path, start, 1_000))


def test_a_file_that_is_held_open_is_not_shared_with_a_fork(tmp_path):
    path = write_tone(tmp_path / "x.m4a", SECONDS)
    whole = audio.read(path)
    np.testing.assert_array_equal(audio.read(path, 30_000, 1_000), whole[30_000:31_000])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    for start in (40_000, 50_000):
        child = context.Process(target=read_in_a_fork, args=(path, start, queue))
        child.start()
        np.testing.assert_array_equal(queue.get(timeout=30), whole[start : start + 1_000])
        child.join()
        part = audio.read(path, start + 500, 1_000)
        np.testing.assert_array_equal(part, whole[start + 500 : start + 1_500])


def test_a_file_that_changed_is_read_anew(tmp_path):
    path = write_tone(tmp_path / "x.m4a", 2)
    audio.read(path, 0, 1_000)
    write_tone(path, 4, seed=1)
    assert audio.probe(path).num_samples >= 4 * 16_000
    assert len(audio.read(path, 1_000, 60_000)) == 60_000


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/tty", "."])
def test_what_is_no_regular_file(name):
    with pytest.raises(AudioError, match=r"a folder|not a regular file|No such device"):
        audio.read(name)


def test_a_name_with_a_nul_byte():
    with pytest.raises(AudioError, match="not a name of a file"):
        audio.probe("a\0b.wav")
