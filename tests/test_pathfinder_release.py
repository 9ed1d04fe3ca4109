"""Pathfinder from the folder of a release: its pictures and index, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from tasks.pathfinder import Pathfinder, PathfinderConfig, deal
from tests.task_cases.pathfinder import write_release


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(tmp_path / "cache"))


def of_release(folder, seq_len=1024) -> Pathfinder:
    return Pathfinder(seq_len, PathfinderConfig(data=str(folder)))


def test_a_release_is_read_as_it_is(tmp_path):
    task = of_release(write_release(tmp_path / "release", 32, 300))
    expected = {}
    for file in (tmp_path / "release" / "metadata").iterdir():
        for line in file.read_text().splitlines():
            folder, name, _, label, *_ = line.split()
            picture = np.asarray(Image.open(tmp_path / "release" / folder / name))
            expected[(picture.astype(int) + 1).tobytes()] = int(label)
    found = {
        inputs.tobytes(): int(target)
        for split in ("train", "validation", "test")
        for inputs, target in zip(task.whole(split).inputs, task.whole(split).targets, strict=True)
    }
    assert found == expected
    assert task.size("train") / 300 == pytest.approx(0.8, abs=0.08)
    assert task.size("test") / 300 == pytest.approx(0.1, abs=0.06)
    assert task.notes() == []


def test_the_index_may_be_an_array(tmp_path):
    folder = write_release(tmp_path / "release", 32, 100)
    as_text = of_release(folder).index
    for file in (folder / "metadata").iterdir():
        rows = [line.split() for line in file.read_text().splitlines()]
        np.save(file, np.array(rows, "S" if file.stem == "0" else "U"))
    assert of_release(folder).index == as_text
    assert of_release(folder).cache_key == Pathfinder(1024, PathfinderConfig(data=f"{folder}/")).cache_key


def test_unreadable_and_repeated_pictures_are_left_out_and_told(tmp_path):
    folder = write_release(tmp_path / "release", 32, 100)
    (folder / "imgs/0/sample_3.png").write_bytes(b"")
    whole = (folder / "imgs/0/sample_4.png").read_bytes()
    (folder / "imgs/0/sample_5.png").write_bytes(whole[: len(whole) // 2])
    (folder / "imgs/1/sample_7.png").write_bytes(whole)
    task = of_release(folder)
    assert sum(map(task.size, ("train", "validation", "test"))) == 97
    assert task.notes() == ["3 of 100 pictures left out: unreadable, or equal to another"]


def test_a_picture_of_another_size_is_refused(tmp_path):
    task = of_release(write_release(tmp_path / "release", 32, 100), 4096)
    with pytest.raises(ValueError, match=r"data: expected 64 x 64 pixels at seq_len 4096, got 32 x 32 in"):
        task.prepare()


def test_a_missing_picture_is_refused(tmp_path):
    folder = write_release(tmp_path / "release", 32, 100)
    (folder / "imgs/1/sample_9.png").unlink()
    with pytest.raises(
        ValueError, match=r"data: expected every picture that the metadata lists, .*1/sample_9.png' is missing$"
    ):
        of_release(folder).prepare()


def test_a_folder_without_metadata_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data: expected a folder with metadata/\*.npy and imgs, got .*nowhere'$"):
        of_release(tmp_path / "nowhere").prepare()


@pytest.mark.parametrize("line", ["imgs/0 sample_2.png 2", "imgs/0 sample_2.png 2 2 1.0"])
def test_a_line_of_another_form_is_refused(tmp_path, line):
    folder = write_release(tmp_path / "release", 32, 100)
    lines = (folder / "metadata/0.npy").read_text().splitlines()
    (folder / "metadata/0.npy").write_text("\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(ValueError, match=rf"0.npy:3: expected folder, file, number and label 0 or 1, got '{line}'$"):
        of_release(folder).prepare()


@pytest.mark.parametrize("contents", [b"\xff\xfe\x00", b"\x93NUMPY\x01\x00broken"])
def test_an_index_of_another_form_is_refused(tmp_path, contents):
    folder = write_release(tmp_path / "release", 32, 100)
    (folder / "metadata/1.npy").write_bytes(contents)
    with pytest.raises(ValueError, match=r"1.npy: expected lines of text or an array of strings"):
        of_release(folder).prepare()


def test_an_index_is_never_unpickled(tmp_path):
    folder = write_release(tmp_path / "release", 32, 100)
    np.save(folder / "metadata/1.npy", np.array([["imgs/0", 1]], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"1.npy: expected .* allow_pickle=False"):
        of_release(folder).prepare()


def test_one_label_alone_is_refused(tmp_path):
    folder = write_release(tmp_path / "release", 32, 100)
    for file in (folder / "metadata").iterdir():
        file.write_text("".join(line + "\n" for line in file.read_text().splitlines() if line.split()[3] == "1"))
    with pytest.raises(ValueError, match=r"data: expected pictures of both labels, got \d+ of one label in"):
        of_release(folder).prepare()


def test_files_are_dealt_by_their_name():
    names = [f"imgs/{n % 20}/sample_{n}.png" for n in range(5000)]
    dealt = [deal(name) for name in names]
    assert dealt == [deal(name) for name in names]
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert dealt.count(split) / 5000 == pytest.approx(share, abs=0.02)
