"Vocal bursts: the generator, layouts that are checked, splits that do not leak, submissions."

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avpapers.core.audio import LogMel
from avpapers.core.random import seeded_generator
from avpapers.exvo import data as D

LOADERS = {"hume_vb": D.hume_vb, "vocal_sound": D.vocal_sound, "vivae": D.vivae}


@pytest.fixture(scope="module")
def bursts():
    return D.burst_synth(480, num_speakers=64, seed=5)


# The generator


def test_shapes_and_ranges(bursts):
    assert (
        bursts.waves.shape == (480, 24_000)
        and bursts.waves.dtype == torch.float32
        and bursts.stand_in
    )
    assert bursts.waves.abs().max() <= 1 and torch.isfinite(bursts.waves).all()
    assert (
        bursts.emotion.shape == (480, 10)
        and bursts.emotion.min() >= 0
        and bursts.emotion.max() <= 1
    )
    assert (
        bursts.age.min() >= 20
        and bursts.age.max() <= 39.5
        and set(bursts.country.tolist()) == {0, 1, 2, 3}
    )
    assert set(bursts.kind.tolist()) == set(range(6)) and bursts.sound.shape == (
        480,
        len(bursts.sound_names),
    )
    assert set(bursts.sex) == {"female", "male"} and not bursts.files


def test_the_end_is_silent_and_the_rest_is_not(bursts):
    for wave, n in zip(bursts.waves, bursts.lengths, strict=True):
        assert not wave[n:].any() and wave[:n].abs().max() > 0.2 and wave[:n].std() > 0.005


def test_seeds():
    def make(**how):
        return D.burst_synth(**{"num": 96, "num_speakers": 32} | how)

    one = make()
    assert torch.equal(one.waves, make().waves) and one.checksum == make().checksum
    for how in (dict(seed=1), dict(gamma=1.0), dict(seconds=1.0)):
        other = make(**how)
        assert other.checksum != one.checksum and not torch.equal(
            other.waves[:, :16_000], one.waves[:, :16_000]
        )
    silent = make(sound=False)
    assert (
        silent.waves is None
        and torch.equal(silent.emotion, one.emotion)
        and torch.equal(silent.sound, one.sound)
    )


def test_gamma_changes_sound_not_labels():
    one, two = (D.burst_synth(96, num_speakers=32, gamma=g, sound=False) for g in (0.0, 1.0))
    assert (
        torch.equal(one.emotion, two.emotion)
        and torch.equal(one.age, two.age)
        and one.split == two.split
    )
    same = D._shown(torch.rand(8, 4, generator=seeded_generator(0)), torch.arange(8) % 4, 0.0)
    assert all(torch.equal(torch.stack(v), torch.stack(same["breath"])) for v in same.values())
    factors, country = torch.rand(40, 4, generator=seeded_generator(0)), torch.arange(40) % 4
    half = D._shown(factors, country, 0.5)
    own = factors.gather(1, D._CODE[country]) - 0.19
    for k, cue in enumerate(D.CUES):
        torch.testing.assert_close(torch.stack(half[cue], 1), own if k < 5 else factors - 0.19)
    assert torch.equal(D._CODE.sort(1).values, torch.arange(4).expand(4, 4))


@given(st.integers(16, 90), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_speakers_are_split_within_countries(num, seed):
    data = D.burst_synth(2 * num, num_speakers=num, seed=seed, sound=False)
    where = dict(zip(data.speaker, data.split, strict=True))
    assert (
        all(where[s] == p for s, p in zip(data.speaker, data.split, strict=True))
        and len(where) == num
    )
    for split in D.SPLITS:
        assert len(data.take(split).country.unique()) == 4
    assert abs(sum(p == "train" for p in where.values()) / num - 0.5) < 0.2


def test_default_split():
    data = D.burst_synth(sound=False)
    assert len(data) == 2400 and [len(set(data.take(s).speaker)) for s in D.SPLITS] == [80, 40, 40]


def test_what_is_planted():
    data = D.burst_synth(8000, num_speakers=4000, sound=False)

    def r(a, b):
        return float(torch.corrcoef(torch.stack([a.float(), b.float()]))[0, 1])

    by = {n: data.sound[:, k] for k, n in enumerate(data.sound_names)}
    e = {n: data.emotion[:, k] for k, n in enumerate(D.EMOTIONS)}
    assert (
        r(e["Fear"], e["Horror"]) > 0.8
        and r(e["Amusement"], e["Triumph"]) > 0.7
        and r(e["Awe"], e["Surprise"]) > 0.5
        and r(e["Fear"], e["Amusement"]) < 0
    )
    assert (
        0.25 < r(by["shimmer"], data.age) < 0.5
        and abs(r(e["Fear"], data.age)) < 0.05
        and abs(r(e["Fear"], data.country == 1)) < 0.05
    )
    female = torch.tensor([s == "female" for s in data.sex])
    assert (by["pitch"][female].mean() - by["pitch"][~female].mean()).item() == pytest.approx(
        math.log2(210 / 120), abs=0.05
    )
    assert r(female, data.age) == pytest.approx(0, abs=0.05)


def test_sound_obeys_the_plan():
    "Pitch, pulses, breath and length are in the sound as they were asked for."
    import librosa

    names = [*D._COLUMNS, "upper", "shimmer", "tract", "limit", "noise"]
    plain = dict(
        zip(names, (math.log2(220), 0, 0, 0, 0, -4, 0, 0, -6, 0, 0, -9, 0, 2.5, -60), strict=True)
    )

    def make(kind, **how):
        s = {k: torch.tensor([[float(v)]]) for k, v in (plain | how).items()}
        waves, lengths = D._sound(
            s, torch.tensor([D.KINDS.index(kind)]), 24_000, seeded_generator(0)
        )
        return waves[0], int(lengths[0])

    for hertz in (150, 220, 500):
        wave, n = make("groan", pitch=math.log2(hertz))
        found = librosa.yin(wave[2000 : n - 4000].numpy(), fmin=80, fmax=900, sr=D.RATE)
        assert abs(np.median(found) / hertz - 1) < 0.03
    assert make("groan", length=-1)[1] == pytest.approx(0.6 * D.RATE, abs=2)

    def flat(wave):
        return float(np.median(librosa.feature.spectral_flatness(y=wave[:12_000].numpy())))

    assert flat(make("sigh", breath=3)[0]) > 3 * flat(make("sigh")[0])
    wave, n = make("laugh", pace=5, depth=0.95)
    envelope = wave[:16_000].square().unfold(0, 320, 320).mean(1).sqrt()
    spectrum = torch.fft.rfft(envelope - envelope.mean()).abs()
    assert int(spectrum.argmax()) == 5  # of one second: five pulses

    def centroid(wave):
        return float(librosa.feature.spectral_centroid(y=wave[:12_000].numpy(), sr=D.RATE).mean())

    assert centroid(make("groan", tilt=6)[0]) > 1.3 * centroid(make("groan", tilt=-6)[0])
    assert centroid(make("gasp", breath=3, limit=2.8)[0]) > centroid(
        make("gasp", breath=3, limit=1.3)[0]
    )


def test_emotion_is_in_the_sound(bursts):
    mel = LogMel(32)(bursts.waves).mean(-1)
    x = torch.cat([(mel - mel.mean(0)) / mel.std(0), torch.ones(len(mel), 1)], 1)
    train = torch.tensor([s == "train" for s in bursts.split])
    weights = torch.linalg.solve(
        x[train].T @ x[train] + 20 * torch.eye(33), x[train].T @ bursts.emotion[train]
    )
    guess, truth = (x @ weights)[~train], bursts.emotion[~train]
    r = [float(torch.corrcoef(torch.stack([guess[:, k], truth[:, k]]))[0, 1]) for k in range(10)]
    assert np.mean(r) > 0.35


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(num_speakers=8), "num_speakers: got 8, expected at least 16"),
        (dict(num=20), "num: got 20, expected at least num_speakers"),
        (dict(gamma=1.5), "gamma: got 1.5, expected 0 to 1"),
        (dict(seconds=0.1), "seconds: got 0.1"),
        (dict(seed=-1), "seed: got -1"),
    ],
)
def test_bad_requests(how, message):
    with pytest.raises(ValueError, match=message):
        D.burst_synth(**how)


# A set


def test_take_and_rows(bursts):
    part = bursts.take("test")
    rows = [i for i, s in enumerate(bursts.split) if s == "test"]
    assert (
        len(part) == len(rows) and set(part.split) == {"test"} and part.emotions == bursts.emotions
    )
    assert (
        torch.equal(part.waves, bursts.waves[rows])
        and part.speaker == tuple(bursts.speaker[i] for i in rows)
        and torch.equal(part.sound, bursts.sound[rows])
    )
    assert len(bursts.rows(bursts.country == 2)) == 120
    with pytest.raises(ValueError, match="split: got 'dev', expected one of"):
        bursts.take("dev")
    with pytest.raises(ValueError, match="got no bursts in split 'train'"):
        part.take("train")


def change(**how):
    return lambda d: replace(d, **{k: v(d) for k, v in how.items()})


BROKEN = {
    "leak": (change(speaker=lambda d: ("same",) * len(d)), "got 'same' in"),
    "split": (
        change(split=lambda d: ("dev",) * len(d)),
        "split: got 'dev', expected one of train, validation, test",
    ),
    "nan in train": (
        change(emotion=lambda d: torch.full_like(d.emotion, math.nan)),
        "emotion: got nan for .* bursts in train",
    ),
    "ratings of 100": (change(emotion=lambda d: 100 * d.emotion), "divide ratings by 100"),
    "columns": (
        change(emotion=lambda d: d.emotion[:, :9]),
        r"emotion: got shape \(480, 9\), expected \(480, 10\)",
    ),
    "country": (change(country=lambda d: d.country + 1), "country: got .*, expected -1"),
    "age": (change(age=lambda d: d.age - 50), "age: got .*, expected 0 to 120"),
    "rows": (change(age=lambda d: d.age[:5]), "expected all equally long"),
    "lengths": (change(lengths=lambda d: d.lengths * 100), "lengths: got none or some outside"),
    "waves": (change(waves=lambda d: d.waves * math.nan), "waves: got NaN"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_check(bursts, kind):
    broken, message = BROKEN[kind]
    with pytest.raises(ValueError, match=message):
        D.check(broken(bursts))


# Layouts


@pytest.fixture
def hume(tmp_path):
    return D.write_fixture("hume_vb", tmp_path)


@pytest.mark.parametrize("name", LOADERS)
def test_loaders(name, tmp_path):
    root = D.write_fixture(name, tmp_path)
    data = LOADERS[name](root)
    assert (
        D.check(data) is data
        and data.waves is None
        and len(data.files) == len(data)
        and data.checksum
    )
    full = D.with_waves(data, root)
    assert full.waves.shape == (len(data), 8000) and set(full.lengths.tolist()) == {8000}
    assert D.with_waves(data, root, max_seconds=0.1).waves.shape[1] == 1600
    assert LOADERS[name](root).checksum == data.checksum


def test_hume_by_hand(hume):
    data = D.hume_vb(hume)
    assert (
        data.split == ("train",) * 6 + ("validation",) * 3 + ("test",) * 3
        and data.countries == D.COUNTRIES
        and not data.stand_in
    )
    assert (
        data.files[7] == "wav/00007.wav" and data.speaker[7] == "Speaker_7" and data.age[7] == 27.5
    )
    torch.testing.assert_close(
        data.emotion[3], torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0, 0.1, 0.2])
    )
    assert (
        data.country.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, -1, -1, -1]
        and data.age[9:].isnan().all()
    )


def test_hume_codes_need_not_start_at_zero(hume):
    file = hume / "data_info.csv"
    lines = file.read_text().splitlines()
    cells = [line.split(",") for line in lines]
    for row in cells[1:]:
        if row[3]:
            row[3] = str(10 * (4 - int(row[3])))
    file.write_text("\n".join(",".join(r) for r in cells))
    data = D.hume_vb(hume)
    assert data.countries == D.COUNTRIES[::-1] and [
        data.countries[c] for c in data.country[:4].tolist()
    ] == list(D.COUNTRIES)


def edited(old, new, count=1):
    return lambda root: (root / "data_info.csv").write_text(
        (root / "data_info.csv").read_text().replace(old, new, count)
    )


DAMAGE = {
    "column": (edited("Triumph", "Victory"), ValueError, "expected Triumph too"),
    "label": (
        edited("0.50", ""),
        ValueError,
        "line 2, Horror: got a gap, .* only test rows may be blind",
    ),
    "no number": (
        edited("0.50", "high"),
        ValueError,
        "data_info.csv, line 2, Horror: got 'high', expected a finite number",
    ),
    "range": (edited("0.50", "1.2"), ValueError, "emotion: got .*, expected 0 to 1"),
    "split": (
        edited("Val", "Dev"),
        ValueError,
        r"line 8, Split: got 'Dev', expected Train, Val or Test",
    ),
    "leak": (
        edited("Speaker_7", "Speaker_1"),
        ValueError,
        "got 'Speaker_1' in 'train' and in 'validation'",
    ),
    "twice": (
        edited("[00005]", "[00004]"),
        ValueError,
        "line 7: got File_ID '00004' again, .* line 6",
    ),
    "wav": (
        lambda r: (r / "wav/00004.wav").unlink(),
        FileNotFoundError,
        "got 11 of 12, without wav/00004.wav, expected all",
    ),
    "csv": (
        lambda r: (r / "data_info.csv").unlink(),
        FileNotFoundError,
        "data_info.csv: got no such file",
    ),
    "empty": (lambda r: (r / "data_info.csv").write_text(""), ValueError, "got no rows"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_hume_damage(kind, hume):
    damage, error, message = DAMAGE[kind]
    damage(hume)
    with pytest.raises(error, match=message):
        D.hume_vb(hume)


SAME_SET = {
    "mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "wide": lambda text: text.encode("utf-16"),
    "tabs": lambda text: text.replace(",", "\t").encode(),
    "blanks around": lambda text: text.replace("Speaker_7", " Speaker_7 ").encode(),
    "ids without zeros": lambda text: text.replace("[00003]", "3").encode(),
}


@pytest.mark.parametrize("kind", SAME_SET)
def test_the_same_table_written_otherwise(kind, hume):
    first, file = D.hume_vb(hume), hume / "data_info.csv"
    file.write_bytes(SAME_SET[kind](file.read_text()))
    again = D.hume_vb(hume)
    assert again.files == first.files and again.speaker == first.speaker
    assert again.checksum == first.checksum


SILENT = {
    "id of another row": (edited("[00003]", " 2"), "line 5: got File_ID '00002' again, .* line 4"),
    "code": (edited(",2,USA", ",2.5,USA"), "line 4, Country: got '2.5', expected a whole number"),
    "two names": (edited(",3,Venezuela", ",3,Peru"), "got 'Venezuela' for code 3, expected Peru"),
    "one name": (edited("USA", "China", 9), "expected one code for each country"),
    "infinite": (edited("21.5", "inf"), "line 3, Age: got 'inf', expected a finite number"),
    "decimal comma": (edited("21.5", '"21,5"'), "Age: got '21,5', .* with a point"),
    "cut": (edited("21.5", "21,5"), "line 3: got 17 cells, expected 16"),
}


@pytest.mark.parametrize("kind", SILENT)
def test_hume_faults_that_look_like_data(kind, hume):
    damage, message = SILENT[kind]
    damage(hume)
    with pytest.raises(ValueError, match=message):
        D.hume_vb(hume)


def test_hume_without_text_encoding(hume):
    text = (hume / "data_info.csv").read_text().replace("Speaker_7", "Zo\xeb")
    (hume / "data_info.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="data_info.csv, line 9: got bytes that are not utf-8"):
        D.hume_vb(hume)


def test_gaps_in_features_move_nothing(hume):
    data, folder = D.hume_vb(hume), hume / "feats/eGeMAPS"
    for k in range(12):
        file = folder / f"{k:05d}.csv"
        head, row = file.read_text().splitlines()
        cells = row.split(",")
        cells[k + 1] = "NA" if k % 2 else ""
        file.write_text(f"{head}\n{','.join(cells)}\n")
    with pytest.raises(
        ValueError, match=r"00000.csv, line 2, f0: got a gap, .* also in 00001.csv, line 2, f1,"
    ):
        D.hume_features(data, hume)


def test_sounds_without_people_are_told(tmp_path):
    root = D.write_fixture("vocal_sound", tmp_path)
    whole = D.vocal_sound(root)
    for file in sorted((root / "audio_16k").glob("f0001*")):
        file.rename(file.with_name(file.name.replace("f0001", "f0099")))
    (root / "audio_16k/f0000_0_sigh.wav").rename(root / "audio_16k/f0000_0_sigh.WAV")
    with pytest.warns(UserWarning) as told:
        data = D.vocal_sound(root)
    assert len(data) == len(whole) - 2 and data.files[1].endswith(".WAV")
    assert [("f0099" in str(w.message), "f0001" in str(w.message)) for w in told] == [
        (True, False),
        (False, True),
    ]
    people = json.loads((root / "meta/tr_meta.json").read_text())
    people[3][2] = "old"
    (root / "meta/tr_meta.json").write_text(json.dumps(people))
    with pytest.raises(ValueError, match="tr_meta.json, entry 4, age: got 'old'"):
        D.vocal_sound(root)


def test_a_damaged_wav_is_named(hume):
    data = D.hume_vb(hume)
    (hume / "wav/00002.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="00002.wav: got 0 bytes"):
        D.with_waves(data, hume)


def test_hume_features(hume):
    data = D.hume_vb(hume)
    x = D.hume_features(data, hume)
    assert x.shape == (12, 88) and x[3, 4] == pytest.approx(math.sin(7), abs=1e-4)
    with pytest.raises(FileNotFoundError, match="got 0 of 12, without feats/ComParE/00000.csv"):
        D.hume_features(data, hume, "ComParE")
    (hume / "feats/eGeMAPS/00001.csv").write_text("file,a\nx,1\n")
    with pytest.raises(
        ValueError, match="00001.csv, line 2: got 1 rows of the columns file, a, expected"
    ):
        D.hume_features(data, hume)


def test_public_split(hume):
    data = D.hume_vb(hume)
    mine = D.public_split(data, share=0.3, seed=1)
    assert len(mine) == 9 and mine.take("test").speaker == data.take("validation").speaker
    assert len(mine.take("validation")) == 2 and set(mine.speaker) == set(data.speaker[:9])
    assert mine.split == D.public_split(data, share=0.3, seed=1).split
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match="share: got"):
            D.public_split(data, share=wrong)
    with pytest.raises(ValueError, match="expected more than the"):
        D.public_split(data, share=0.99)


def test_vocal_sound(tmp_path):
    root = D.write_fixture("vocal_sound", tmp_path)
    data = D.vocal_sound(root)
    assert (
        data.emotion is None
        and data.kinds == D.VOCAL_SOUND_KINDS
        and data.kind.tolist() == [0, 1] * 10
    )
    assert data.countries == (
        "India",
        "Peru",
        "Spain",
        "USA",
    )  # by training speakers, then by name; UK is left out
    assert {
        c for s, c in zip(data.speaker, data.country.tolist(), strict=True) if s == "f0002"
    } == {-1}
    assert data.age[:2].isnan().all() and data.age[2] == 21
    people = json.loads((root / "meta/te_meta.json").read_text())
    (root / "meta/te_meta.json").write_text(json.dumps([["f0001", *people[0][1:]]]))
    with pytest.raises(
        ValueError, match="entry 1: got speaker 'f0001' again, .* tr_meta.json, entry 2"
    ):
        D.vocal_sound(root)
    (root / "meta/te_meta.json").write_text("[")
    with pytest.raises(ValueError, match="te_meta.json, line 1: got .*, expected whole JSON"):
        D.vocal_sound(root)
    (root / "meta/te_meta.json").write_text("[]")
    with pytest.raises(ValueError, match="te_meta.json: got no people"):
        D.vocal_sound(root)
    (root / "meta/te_meta.json").write_text(json.dumps(people))
    (root / "audio_16k/f0001_hum.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="f0001_hum.wav, expected SPEAKER_NUMBER_KIND"):
        D.vocal_sound(root)


def test_vivae(tmp_path):
    root = D.write_fixture("vivae", tmp_path)
    data = D.vivae(root)
    assert (
        data.emotions == D.VIVAE_EMOTIONS
        and data.emotion.shape == (60, 6)
        and ((data.emotion > 0).sum(1) == 1).all()
    )
    assert {s: p for s, p in zip(data.speaker, data.split, strict=True)} == {
        "S01": "train",
        "S02": "validation",
        "S03": "validation",
        "S04": "test",
        "S05": "test",
    }
    assert (
        sorted(data.emotion.max(1).values.unique().tolist()) == [0.25, 0.5, 0.75, 1.0]
        and (data.country == -1).all()
    )
    (root / "core/S01_joy_low_01.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="S01_joy_low_01.wav, expected one such as"):
        D.vivae(root)
    (root / "core/S01_joy_low_01.wav").unlink()
    (root / "full").mkdir()
    (root / "full/s01_ANGER_low_01.WAV").write_bytes(b"")
    (root / "core/S01_anger_low_01.wav").touch()
    with pytest.raises(ValueError, match="got the sound .s01_anger_low_01. again"):
        D.vivae(root)
    with pytest.raises(FileNotFoundError, match="without wav files"):
        D.vivae(tmp_path / "nowhere")


def test_submission(hume):
    blind = D.hume_vb(hume).take("test")
    good = dict(
        emotion=torch.rand(3, 10),
        country=torch.tensor([0, 3, 1]),
        age=torch.tensor([25.0, 31.5, 28.0]),
    )
    frame = D.submission_frame(blind, **good)
    assert list(frame.columns) == ["File_ID", "Country", "Age", *D.EMOTIONS] and frame[
        "File_ID"
    ].tolist() == ["[00009]", "[00010]", "[00011]"]
    for field, value, message in (
        ("emotion", torch.rand(3, 9), "emotion: got \\(3, 9\\), expected shape"),
        ("emotion", 2 + torch.rand(3, 10), "expected 0 to 1"),
        ("country", torch.tensor([0, 1, 4]), "country: got .*, expected 0 to 3"),
        ("age", torch.tensor([1, 2, math.nan]), "age: got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            D.submission_frame(blind, **good | {field: value})


def test_unknown_fixture(tmp_path):
    with pytest.raises(
        ValueError, match="name: got 'emogator', expected one of hume_vb, vocal_sound, vivae"
    ):
        D.write_fixture("emogator", tmp_path)


def test_catalog():
    assert set(D.CHECKSUMS) <= set(D.DATASETS) and "voices hedgewars" in D.DATASETS
    assert [n for n, d in D.DATASETS.items() if d.embedded] == ["burst synth"] and D.DATASETS[
        "burst synth"
    ].get()
    assert "by hand" in D.DATASETS["vivae"].get()
