"""Models that --save keeps: scored again to the last digit, at other lengths, and used on new texts."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from compare.__main__ import main
from compare.runs.kept import load
from tasks.bytes import HIDDEN, Bytes
from tests.here import compare_here, few_samples
from tests.task_cases.text import reviews
from zoo import Encoder

Record = dict[str, Any]
SMALL = (
    *("--batch-size", "4", "--d-model", "16", "--n-heads", "2", "--n-layers", "1"),
    *("--no-control", "--steps", "3", "--save"),
)


def kept(out: Path, *words: str) -> tuple[Path, Record]:
    """The folder of the one model that a comparison kept, and its record."""
    done = compare_here(*SMALL, *words, "--out", str(out))
    assert done.returncode == 0, done.stderr
    (record,) = (json.loads(line) for line in (out / "records.jsonl").read_text().splitlines())
    return out / record["model"], record


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with few_samples(), pytest.raises(SystemExit) as stop:
        main(list(words))
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    return captured.out


@pytest.fixture(scope="module")
def recall(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    words = ("--variants", "linear", "--tasks", "noisy_recall", "--seq-len", "128")
    return kept(tmp_path_factory.mktemp("recall"), *words)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    made = reviews(0, 200)
    file = tmp_path / "reviews.csv"
    rows = zip(made["text"], (("bad", "good")[n] for n in made["label"]), strict=True)
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([("review", "stars"), *rows])
    return file


@pytest.fixture
def classifier(tmp_path: Path, texts: Path) -> tuple[Path, Record]:
    words = ["--variants", "full", "--task", "classify", "--seq-len", "64", "--data", str(texts)]
    return kept(tmp_path / "out", *words, "--label-column", "stars")


def test_a_kept_model_scores_as_its_record_says_to_the_last_digit(
    recall: tuple[Path, Record], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = recall
    result = json.loads(said(capsys, "evaluate", "--model", str(folder), "--json", "--device", "cpu"))
    for field in ("test_score", "test_loss", "test_size", "test_slices", "baselines"):
        assert result[field] == record[field], field


def test_the_folder_holds_the_encoder_and_no_pickle(recall: tuple[Path, Record]) -> None:
    folder, record = recall
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "head.safetensors", "record.json", "README.md"),
    }
    encoder = Encoder.from_pretrained(folder)
    mine = load(folder)
    torch.testing.assert_close(encoder.state_dict(), mine.model.encoder.state_dict(), rtol=0, atol=0)
    assert mine.spec.run_id == record["run_id"]
    card = (folder / "README.md").read_text()
    assert f"{record['test_score']:.1%}" in card
    assert "python -m compare --no-control --variants linear --tasks noisy_recall" in card


def test_other_lengths_and_options_of_the_task(recall: tuple[Path, Record], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = recall
    shown = said(capsys, "evaluate", "--model", str(folder), "--seq-len", "64,256", "--device", "cpu")
    assert [line.partition(":")[0] for line in shown.splitlines()] == ["noisy_recall · N 64", "noisy_recall · N 256"]
    assert "best trivial predictor" in shown
    changed = said(capsys, "evaluate", "--model", str(folder), "--set", "noisy_recall.pairs=4", "--json")
    assert json.loads(changed)["baselines"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--task", "mqar"], "mqar has vocab_size"),
        (["--task", "mqarr"], "did you mean 'mqar'"),
        (["--set", "mqar.pairs=4"], "expected an option of the task noisy_recall, got one of 'mqar'"),
        (["--set", "noisy_recall.pair=4"], "noisy_recall has no option 'pair'"),
        (["--seq-len", "3"], "noisy_recall: expected"),
    ],
)
def test_what_a_model_cannot_take_is_one_line(
    words: list[str], complaint: str, recall: tuple[Path, Record], capsys: pytest.CaptureFixture[str]
) -> None:
    with few_samples(), pytest.raises(SystemExit) as stop:
        main(["evaluate", "--model", str(recall[0]), *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_a_folder_without_a_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--model", str(tmp_path)])
    assert stop.value.code == 2
    assert "has no record.json: expected a model that --save kept" in capsys.readouterr().err


def test_new_texts_are_classified_in_order(classifier: tuple[Path, Record], tmp_path: Path) -> None:
    """In a fresh process: rows of very different lengths, an empty one, quotes and a line end within a text."""
    folder, _ = classifier
    rows = [("1", "good " * 40), ("2", "x"), ("3", ""), ("4", 'a "fine", odd\ntext'), ("5", "bad film")]
    data, out = tmp_path / "new.csv", tmp_path / "answers.csv"
    with data.open("w", newline="") as opened:
        csv.writer(opened).writerows([("id", "review"), *rows])
    words = ["predict", "--model", str(folder), "--data", str(data), "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", "compare", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "5 rows in" in done.stderr
    with out.open(newline="") as opened:
        header, *answers = csv.reader(opened)
    assert header == ["id", "review", "prediction", "probability"]
    assert [tuple(row[:2]) for row in answers] == rows
    assert answers[2][2:] == ["", ""]
    model = load(folder).model
    for (_, text), (_, _, prediction, probability) in zip(rows, answers, strict=True):
        if text:
            ids = torch.tensor([[byte + 1 for byte in text.encode()[:64]]])
            with torch.no_grad():
                chances = model.head(model.encoder(ids)).softmax(-1)[0]
            assert prediction == ("bad", "good")[int(chances.argmax())]
            assert float(probability) == pytest.approx(float(chances.max()), abs=2e-5)


def test_masked_bytes_are_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = kept(tmp_path / "out", *["--variants", "full", "--tasks", "bytes", "--seq-len", "64"])
    data = tmp_path / "new.csv"
    data.write_text("text\nimpo[MASK]t os\nreturn None\n" + "x" * 70 + "[MASK]\n")
    rows = list(csv.reader(said(capsys, "predict", "--model", str(folder), "--data", str(data)).splitlines()))
    assert rows[0] == ["text", "prediction", "probability"]
    assert len(rows[1][1].encode("latin-1", "replace")) == len("import os")
    assert rows[1][1].startswith("impo")
    assert 0 < float(rows[1][2]) <= 1
    assert rows[2] == ["return None", "return None", ""]
    assert rows[3][1] == "x" * 70 + "[MASK]", "beyond the model's length nothing is filled in"


def test_hidden_bytes_become_one_id_each() -> None:
    task = Bytes(64)
    (ids,) = task.ids_of([b"a" + HIDDEN + HIDDEN + b"b"])
    assert ids.tolist() == [98, 257, 257, 99]
    assert task.hidden(ids).tolist() == [False, True, True, False]
    assert task.filled(b"a" + HIDDEN + HIDDEN + b"b", ids[[0]]) == b"aa" + HIDDEN + b"b"


@pytest.mark.parametrize(
    ("content", "words", "complaint"),
    [
        ("id,n\n1,2\n", [], "predict: expected a column 'review', got the columns id, n"),
        ("id,review\n1,a\n", ["--text-column", "body"], "expected a column 'body', got the columns id, review"),
        ("review,prediction\na,b\n", [], "expected no column 'prediction', which the predictions get"),
        ("", [], "got the empty file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    content: str,
    words: list[str],
    complaint: str,
    classifier: tuple[Path, Record],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = tmp_path / "new.csv", tmp_path / "answers.csv"
    data.write_text(content)
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--model", str(classifier[0]), "--data", str(data), "--out", str(out), *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("answers*")), "no file is left half written"


def test_a_model_without_texts_cannot_predict(
    recall: tuple[Path, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "new.csv"
    data.write_text("text\na\nb\n")
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--model", str(recall[0]), "--data", str(data)])
    assert stop.value.code == 2
    assert "noisy_recall: expected a task whose inputs are texts" in capsys.readouterr().err
