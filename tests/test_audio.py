"Audio: damaged files raise errors, log-mel equals librosa, masks leave padding out."

import base64
import io
import math
import os
import struct
import warnings
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avpapers.core import audio as A
from avpapers.core.random import seeded_generator


def noise(seconds=0.5, rate=16_000, channels=1, seed=0):
    shape = (round(seconds * rate), channels) if channels > 1 else (round(seconds * rate),)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def content(samples, rate=16_000, **how):
    soundfile.write(file := io.BytesIO(), samples, rate, **({"format": "WAV"} | how))
    return file.getvalue()


# Loading


@pytest.mark.parametrize(
    "subtype, error",
    [("PCM_U8", 2**-7), ("PCM_16", 2**-14), ("PCM_24", 2**-22), ("PCM_32", 1e-7), ("FLOAT", 0)],
)
def test_depths(subtype, error):
    wave = A.load_audio(content(noise(), subtype=subtype))
    assert wave.dtype == torch.float32 and wave.shape == (8000,)
    assert (wave - torch.from_numpy(noise())).abs().max() <= error


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_rates(rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)
    wave = A.load_audio(content(tone, rate))
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(wave)) / 16_000)
    assert len(wave) == math.ceil(rate // 2 * 16_000 / rate) and wave.dtype == torch.float32
    assert np.abs(wave.numpy() - expected)[200:-200].max() < 2e-3


@pytest.mark.parametrize("channels", [2, 6])
def test_channels(channels):
    samples = noise(channels=channels)
    data = content(samples, subtype="FLOAT")
    many = A.load_audio(data, mono=False)
    torch.testing.assert_close(many, torch.from_numpy(samples.T.copy()))
    torch.testing.assert_close(A.load_audio(data), many.mean(0))


def test_sources_agree(tmp_path):
    data = content(noise())
    (tmp_path / "a.wav").write_bytes(data)
    with open(tmp_path / "a.wav", "rb") as file:
        found = [
            A.load_audio(x)
            for x in (tmp_path / "a.wav", str(tmp_path / "a.wav"), data, io.BytesIO(data), file)
        ]
    assert all(torch.equal(f, found[0]) for f in found)


@pytest.mark.parametrize(
    "how",
    [
        dict(format="FLAC"),
        dict(format="OGG"),
        dict(format="OGG", subtype="OPUS"),
        dict(format="MP3"),
        dict(format="AIFF"),
    ],
)
def test_formats(how):
    wave = A.load_audio(content(noise(), **how))
    assert len(wave) == 8000 and torch.isfinite(wave).all()


def test_a_short_clip_is_not_an_error():
    assert len(A.load_audio(content(noise(0.01)))) == 160
    assert len(A.load_audio(content(noise(1 / 16_000)))) == 1
    assert len(A.load_audio(content(noise(1 / 16_000), rate=192_000))) == 1


def test_max_seconds():
    data = content(noise(1.0, 48_000), rate=48_000)
    assert len(A.load_audio(data, max_seconds=0.25)) == 4000
    assert len(A.load_audio(data, max_seconds=9)) == 16_000
    with pytest.raises(ValueError, match="max_seconds: got 0, expected a number above 0"):
        A.load_audio(data, max_seconds=0)


def with_nan():
    samples = noise()
    samples[7] = np.nan
    return content(samples, subtype="FLOAT")


BAD = {
    "0 bytes": (b"", "got 0 bytes"),
    "text": (b"these are words, and many of them " * 50, "cannot be read as audio"),
    "half a header": (content(noise())[:30], "cannot be read as audio"),
    "a whole header alone": (content(noise())[:44], "no samples|cut off"),
    "wav cut": (content(noise())[:5000], "cut off.*allow_cut=True"),
    "wav cut by one byte": (content(noise())[:-1], "cut off"),
    "aiff cut": (content(noise(), format="AIFF")[:5000], "cut off"),
    "flac cut": (content(noise(2), format="FLAC")[:9000], "cut off|cannot be read"),
    "ogg cut": (content(noise(20), format="OGG")[:90_000], "cut off|no samples"),
    "no frames": (content(noise()[:0]), "no samples"),
    "nan": (with_nan(), "1 samples that are NaN or infinite, the first at 7"),
    "another scale": (content(20_000 * noise(), subtype="FLOAT"), r"expected -1 to 1"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_raise_errors(kind, tmp_path):
    data, message = BAD[kind]
    (tmp_path / "bad.wav").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        A.load_audio(data)
    with pytest.raises(ValueError, match="bad.wav"):
        A.load_audio(tmp_path / "bad.wav")


def test_missing_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.wav: got no file"):
        A.load_audio(tmp_path / "no.wav")
    with pytest.raises(ValueError, match="got a folder"):
        A.load_audio(tmp_path)
    with pytest.raises(ValueError, match="source: got Tensor, expected a path"):
        A.load_audio(torch.zeros(3))


def test_a_cut_file_on_request():
    assert 2000 < len(A.load_audio(content(noise())[:5000], allow_cut=True)) < 2500


def with_length(length, data=None):
    "A wav whose header says another length."
    data = bytearray(content(noise()) if data is None else data)
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", length)
    return bytes(data)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0xFFFFFF00, 0x80000000, 0x7FFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize("max_seconds, samples", [(None, 8000), (0.25, 4000), (9, 8000)])
def test_a_wav_written_into_a_pipe_is_whole(length, max_seconds, samples):
    assert len(A.load_audio(with_length(length), max_seconds=max_seconds)) == samples


def test_a_header_that_was_never_finished(tmp_path):
    whole = content(noise())
    for data in (with_length(0), with_length(0)[:4] + bytes(4) + with_length(0)[8:]):
        (tmp_path / "stopped.wav").write_bytes(data)
        for source in (data, tmp_path / "stopped.wav"):
            with pytest.raises(ValueError, match=r"cut off, .*allow_cut=True.*0\.500 s"):
                A.load_audio(source)
            assert torch.equal(A.load_audio(source, allow_cut=True), A.load_audio(whole))


def test_no_sound_but_other_chunks_is_not_unfinished():
    empty = content(noise()[:0]) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    for allow_cut in (False, True):
        with pytest.raises(ValueError, match="no samples"):
            A.load_audio(empty, allow_cut=allow_cut)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seconds", [0.1, 17.0])
def test_a_flac_of_unknown_length(channels, seconds):
    whole = content(noise(seconds, channels=channels), format="FLAC")
    data = bytearray(whole)
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    for limit in (None, 0.05, seconds, 99):
        expected = A.load_audio(whole, max_seconds=limit)
        assert torch.equal(A.load_audio(bytes(data), max_seconds=limit), expected)


@pytest.mark.parametrize("name", [b"caf\xe9.wav", "caf\u00e9.wav".encode(), b"\xff\xfe.wav"])
def test_names_that_are_not_utf8(name, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_bytes(content(noise()))
    assert len(A.load_audio(path)) == 8000
    path.write_bytes(b"no sound at all")
    with pytest.raises(ValueError, match=r"\.wav: got a file") as error:
        A.load_audio(path)
    str(error.value).encode()  # can be printed


def test_what_is_over_full_scale_is_clipped_and_said():
    with pytest.warns(UserWarning, match=r"samples up to 1\.5, .* of them are clipped"):
        wave = A.load_audio(content(3 * noise(), subtype="FLOAT"))
    assert wave.abs().max() == 1
    square = np.sign(np.sin(np.arange(8000))).astype(np.float32)  # overshoots when resampled
    with pytest.warns(UserWarning, match="clipped"):
        assert A.load_audio(content(square, 44_100, subtype="FLOAT")).abs().max() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert A.load_audio(content(1.9 * noise(), subtype="FLOAT")).abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_changes_the_type_of_the_result_only(dtype):
    wave = torch.from_numpy(noise())[None]
    front, cast = A.LogMel(16), A.LogMel(16).to(dtype)
    assert torch.equal(cast(wave), front(wave).to(dtype))
    assert torch.equal(cast(wave.to(dtype)), front(wave.to(dtype).float()).to(dtype))
    net = torch.nn.Sequential(A.LogMel(16), torch.nn.Conv1d(16, 3, 1)).to(dtype)
    assert net(wave).isfinite().all() and torch.equal(cast.float()(wave), front(wave))


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_a_value_error(data):
    for prefix in (b"", b"RIFF\x00\x01\x00\x00WAVE", b"OggS", b"FORM\x00\x00\x00\x10AIFF"):
        with pytest.raises(ValueError):
            A.load_audio(prefix + data)


# Resampling


@pytest.mark.parametrize(
    "rates", [(44_100, 16_000), (16_000, 44_100), (48_000, 16_000), (8000, 16_000)]
)
def test_resample_equals_librosa(rates):
    wave = noise(rate=rates[0])
    expected = librosa.resample(wave, orig_sr=rates[0], target_sr=rates[1], res_type="soxr_hq")
    torch.testing.assert_close(
        A.resample(torch.from_numpy(wave), *rates), torch.from_numpy(expected), atol=1e-5, rtol=1e-5
    )


def test_resample_keeps_channels_and_length():
    wave = torch.from_numpy(noise(channels=3, rate=44_100).T.copy())
    made = A.resample(wave, 44_100, 16_000)
    assert made.shape == (3, 8000)
    torch.testing.assert_close(made[1], A.resample(wave[1], 44_100, 16_000), atol=1e-6, rtol=0)
    assert A.resample(wave, 16_000, 16_000) is wave
    for wrong in ((0, 16_000), (16_000, 0.5)):
        with pytest.raises(ValueError, match="expected a whole number of Hz"):
            A.resample(wave, *wrong)


# Log-mel


SETTINGS = [
    dict(),
    dict(num_mels=128),
    dict(num_mels=40, window_ms=32.0, hop_ms=16.0),
    dict(
        num_mels=80,
        sample_rate=22_050,
        window_ms=1024 / 22.05,
        hop_ms=256 / 22.05,
        n_fft=1024,
        f_max=8000.0,
    ),
    dict(num_mels=23, sample_rate=8000, f_min=60.0, f_max=3800.0),
    dict(num_mels=64, power=1.0),
    dict(num_mels=64, center=False),
    dict(num_mels=64, n_fft=2048, floor=1e-5),
]


@pytest.mark.parametrize("how", SETTINGS, ids=str)
def test_log_mel_equals_librosa(how):
    front = A.LogMel(**how)
    wave = torch.from_numpy(noise(0.7, front.sample_rate))
    power = librosa.feature.melspectrogram(
        y=wave.numpy(),
        sr=front.sample_rate,
        n_fft=front.n_fft,
        hop_length=front.hop,
        win_length=front.window_length,
        n_mels=front.num_mels,
        fmin=front.f_min,
        fmax=front.f_max,
        power=front.power,
        center=front.center,
        pad_mode="constant",
    )
    expected = torch.from_numpy(np.log(np.maximum(power, front.floor)))
    torch.testing.assert_close(front(wave), expected, rtol=1e-4, atol=1e-4)
    assert front.frame_lengths(torch.tensor([len(wave)])).item() == expected.shape[1]


def test_log_mel_gradient():
    front = A.LogMel(4, sample_rate=1000, window_ms=16, hop_ms=8).double()
    wave = torch.randn(2, 64, dtype=torch.float64, generator=seeded_generator(0)).requires_grad_()
    assert torch.autograd.gradcheck(front, wave)
    front = A.LogMel(4, sample_rate=1000, window_ms=16, hop_ms=8, power=1.0)
    silent = torch.zeros(1, 64, requires_grad=True)
    front(silent).sum().backward()
    assert torch.isfinite(silent.grad).all()


@given(st.integers(0, 99), st.integers(1, 5), st.floats(0.1, 5))
@settings(max_examples=20, deadline=None)
def test_log_mel_invariances(seed, hops, gain):
    front = A.LogMel(32)
    wave = 0.1 * torch.randn(4000, generator=seeded_generator(seed))
    mel = front(wave)
    torch.testing.assert_close(front(gain * wave), mel + 2 * math.log(gain), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        front(wave[hops * front.hop :])[:, 3:12], mel[:, 3 + hops : 12 + hops]
    )
    torch.testing.assert_close(front(torch.stack([wave, wave.flip(0)]))[0], mel)


def test_batch_of_any_shape_and_no_state():
    front = A.LogMel(32)
    wave = torch.randn(2, 3, 1000, generator=seeded_generator(0))
    assert front(wave).shape == (2, 3, 32, 7)
    torch.testing.assert_close(front(wave)[1, 2], front(wave[1, 2]))
    assert not front.state_dict() and not list(front.parameters())
    assert front(wave.half()).dtype == torch.float32 and front.double()(wave).dtype == torch.float64


@pytest.mark.parametrize("lengths", [(4000, 1234), (160, 4000), (1, 159)])
@pytest.mark.parametrize("center", [True, False])
def test_padding_does_not_count(lengths, center):
    front = A.LogMel(32, center=center)
    clips = [
        torch.randn(max(n, 1 if center else front.n_fft), generator=seeded_generator(n))
        for n in lengths
    ]
    batch, true = A.pad_waves(clips)
    mel, frames = front(batch), front.frame_lengths(true)
    for k, clip in enumerate(clips):
        alone = front(clip)
        assert frames[k] == alone.shape[1]
        torch.testing.assert_close(mel[k, :, : frames[k]], alone)
    torch.testing.assert_close(A.masked_mean(mel, frames)[1], front(clips[1]).mean(-1))


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(num_mels=0), "num_mels: got 0, expected at least 1"),
        (dict(f_max=9000.0), "f_min and f_max"),
        (dict(f_min=5000.0, f_max=100.0), "f_min and f_max"),
        (dict(num_mels=256, n_fft=512), "without a frequency, .*; raise n_fft"),
        (dict(n_fft=256), "n_fft: got 256, expected at least the window"),
        (dict(hop_ms=0.0), "hop_ms"),
        (dict(floor=0.0), "expected both above 0"),
    ],
)
def test_bad_front_ends(how, message):
    with pytest.raises(ValueError, match=message):
        A.LogMel(**how)


def test_bad_waves():
    with pytest.raises(ValueError, match="wave: got torch.int16, expected floats"):
        A.LogMel()(torch.zeros(1000, dtype=torch.int16))
    with pytest.raises(ValueError, match="wave: got 500 samples, expected at least 512"):
        A.LogMel(center=False)(torch.zeros(500))


# Masks


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_masked_mean(lengths, seed):
    x = torch.randn(len(lengths), 3, 9, 2, generator=seeded_generator(seed))
    dirty = x.clone()
    for k, n in enumerate(lengths):
        dirty[k, :, n:] = float("nan")
    got = A.masked_mean(dirty, torch.tensor(lengths), dim=2)
    for k, n in enumerate(lengths):
        torch.testing.assert_close(got[k], x[k, :, :n].mean(1) if n else torch.zeros(3, 2))


def test_masks_reject_nonsense():
    with pytest.raises(ValueError, match="lengths: got shape"):
        A.masked_mean(torch.zeros(2, 3), torch.tensor([1]))
    with pytest.raises(ValueError, match="dim: got 0"):
        A.masked_mean(torch.zeros(2, 3), torch.tensor([1, 1]), dim=0)
    with pytest.raises(ValueError, match="at least one clip"):
        A.pad_waves([])
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        A.pad_waves([torch.zeros(2, 3)])
    batch, lengths = A.pad_waves([torch.ones(5), torch.ones(9)], max_length=6)
    assert batch.shape == (2, 6) and lengths.tolist() == [5, 6]


@given(
    st.integers(0, 200), st.integers(0, 6), st.integers(0, 40), st.integers(0, 3), st.integers(0, 3)
)
@settings(max_examples=40, deadline=None)
def test_spec_augment_bounds(seed, freq, time, nf, nt):
    mel = torch.randn(5, 12, 30, generator=seeded_generator(seed))
    true = torch.tensor([30, 17, 5, 1, 30])
    got = A.spec_augment(
        mel,
        generator=seeded_generator(seed),
        freq_mask=freq,
        time_mask=time,
        num_freq=nf,
        num_time=nt,
        lengths=true,
    )
    changed = got != mel
    rows, columns = changed.all(2), changed.all(1)
    assert rows.sum(1).max() <= freq * nf or (columns.sum(1) == 30).any()
    for k, n in enumerate(true.tolist()):
        only_time = changed[k] & ~rows[k][:, None]
        assert not only_time[:, n:].any()
        assert columns[k].sum() <= max(time * nt, 30 * bool(rows[k].all()))
        if changed[k].any():
            torch.testing.assert_close(
                got[k][changed[k]], mel[k, :, :n].mean().expand(int(changed[k].sum()))
            )
    if not freq * nf + time * nt:
        assert torch.equal(got, mel)


def test_spec_augment_is_seeded_and_covers():
    mel = torch.ones(4000, 16, 20)
    one, two = (
        A.spec_augment(
            mel, generator=seeded_generator(3), freq_mask=4, time_mask=0, num_freq=1, fill=0.0
        )
        for _ in range(2)
    )
    assert torch.equal(one, two) and not torch.equal(
        one, A.spec_augment(mel, generator=seeded_generator(4), freq_mask=4, time_mask=0, fill=0.0)
    )
    widths = (one[:, :, 0] == 0).sum(1)
    assert (
        sorted(widths.unique().tolist()) == [0, 1, 2, 3, 4] and abs(widths.float().mean() - 2) < 0.1
    )
    assert ((one == 0).any(0)[:, 0]).all()  # every band is hidden some time, the outer ones too
    for wrong in (dict(freq_mask=17), dict(time_mask=-1), dict(fill="median")):
        with pytest.raises(ValueError):
            A.spec_augment(mel, generator=seeded_generator(0), **wrong)


# Pages


def test_player_is_small_and_keeps_loudness():
    wave = torch.from_numpy(0.1 * noise(1.5))
    shown = A.player(wave)
    html = shown._repr_html_()
    assert 'type="audio/mpeg"' in html and len(html) < 40_000
    back = A.load_audio(base64.b64decode(html.split("base64,")[1].split('"')[0]))
    assert 0.8 < back.std() / wave.std() < 1.25
    assert (
        A.players({"a<b": wave, "c": wave}).data.count("<audio") == 2
        and "a&lt;b" in A.players({"a<b": wave}).data
    )
    with pytest.raises(ValueError, match="wave: got"):
        A.player(torch.zeros(10, dtype=torch.int16))


def test_spectrogram_axes():
    front = A.LogMel(64)
    for hertz in (500, 1000, 4000):
        tone = torch.sin(2 * math.pi * hertz * torch.arange(8000) / 16_000)
        assert (
            abs(
                int(front(tone)[:, 10:-10].mean(1).argmax())
                - A._mel_places([hertz], 64, 0.0, 8000.0)[0]
            )
            < 1
        )
    ax = A.show_spectrogram(front(tone), title="tone")
    assert (
        ax.get_xlabel() == "time (s)"
        and ax.get_ylabel() == "frequency (Hz)"
        and ax.get_title() == "tone"
    )
    assert ax.images[0].get_array().max() == 0 and abs(ax.get_xlim()[1] - 0.505) < 1e-6
    with pytest.raises(ValueError, match="one clip"):
        A.show_spectrogram(torch.zeros(2, 3, 4))


def test_import_is_light():
    import subprocess
    import sys

    heavy = ("librosa", "soundfile", "IPython", "matplotlib", "soxr")
    code = f"import sys, avpapers.core.audio; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )
