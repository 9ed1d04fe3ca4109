"""Data of one's own, from a file to a trained model, as a stranger would use it."""

import doctest
import json

import datasets
import numpy as np
import pytest

import tasks.classify
from tasks.baselines import hashed_ngrams, majority, some_rows
from tasks.classify import Classify, ClassifyConfig
from tests.learning import learns, small_spec
from tests.task_cases.classify import write_tokenizer
from tests.task_cases.text import reviews


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ATTENTION_ZOO_CACHE", str(folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    return folder


@pytest.fixture
def file(tmp_path):
    """A csv with two duplicates, an empty text and a row without a class."""
    made = reviews(0, 200)
    stars = ["three" if n % 5 == 0 else str(label) for n, label in enumerate(made["label"])]
    rows = [
        *zip(made["text"], stars, strict=True),
        (made["text"][0], "1"),
        (made["text"][1], "0"),
        ("", "1"),
        ("x", ""),
    ]
    file = tmp_path / "reviews.csv"
    file.write_text("review,stars\n" + "".join(f'"{text}",{star}\n' for text, star in rows), encoding="utf-8")
    return file


def task_of(file, seq_len=100, **options):
    return Classify(seq_len, ClassifyConfig(data=str(file), **options))


def test_worked_example():
    assert doctest.testmod(tasks.classify).failed == 0


def test_classes_and_texts_of_a_csv(file):
    task = task_of(file, label_column="stars")
    assert (task.vocab_size, task.n_classes) == (257, 3)
    seen = {}
    for split in ("train", "validation", "test"):
        whole = task.whole(split)
        for ids, target in zip(whole.inputs, whole.targets, strict=True):
            seen[(ids[ids > 0] - 1).astype(np.uint8).tobytes()] = ("0", "1", "three")[target]
    made = reviews(0, 200)
    for n, (text, label) in enumerate(zip(made["text"], made["label"], strict=True)):
        assert seen[text.encode()[:100]] == ("three" if n % 5 == 0 else str(label))
    assert len(seen) == 200


NOTES = [
    "no test split in the data: 10% of train replaces it",
    "no validation split in the data: 10% of train replaces it",
    "left out: 2 duplicate, 1 empty, 1 without a class",
]


def test_what_was_left_out_is_told(file):
    assert task_of(file, 4000, label_column="stars").notes() == NOTES


def test_counts_survive_the_cache(file, monkeypatch):
    task_of(file, label_column="stars").prepare()
    with monkeypatch.context() as patch:
        patch.setattr(Classify, "read", lambda _: pytest.fail("read again"))
        again = task_of(file, 4000, label_column="stars")
        assert (again.n_classes, again.facts["notes"]) == (3, NOTES)


def test_counts_are_made_again_where_they_were_not_written(file, cache):
    task_of(file, label_column="stars").prepare()
    about = next(cache.glob("*/about.json"))
    written = json.loads(about.read_text())
    about.unlink()
    again = task_of(file, 4000, label_column="stars")
    assert again.notes() == NOTES
    assert json.loads(about.read_text()) == written


def test_other_options_and_changed_files_have_other_rows(file):
    plain = task_of(file, label_column="stars")
    key = plain.cache_key
    assert task_of(file, 64, label_column="stars").cache_key == key
    assert task_of(file, label_column="stars", text_column="review").cache_key != key
    file.write_text(file.read_text(encoding="utf-8") + "more,1\n", encoding="utf-8")
    assert task_of(file, label_column="stars").cache_key != key
    assert task_of(file, label_column="stars").size("train") >= plain.size("train")


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"^classify.data: expected .* got nothing: pass --data$"):
        Classify(100)
    with pytest.raises(ValueError, match=r"^classify.text_column: expected a column other than .* got 'a'$"):
        ClassifyConfig(data="x.csv", text_column="a", label_column="a")
    with pytest.raises(ValueError, match="not a file, a folder or a hub id"):
        task_of("missing.csv").prepare()


def test_data_is_not_read_before_it_is_asked_for():
    assert task_of("missing.csv").seq_len == 100


def test_a_missing_column_names_those_there(file):
    with pytest.raises(ValueError, match=r"^classify: expected a column of the class.*--label-column.* review, stars$"):
        task_of(file).prepare()


def test_a_file_too_small_for_three_splits(tmp_path):
    (tmp_path / "tiny.csv").write_text("text,label\na,0\nb,1\nc,0\nd,1\n")
    with pytest.raises(ValueError, match=r"at least one sample, got none for (test|validation|train); "):
        task_of(tmp_path / "tiny.csv").prepare()


@pytest.fixture
def tokenizer(tmp_path):
    pytest.importorskip("tokenizers")
    write_tokenizer(tmp_path / "tokenizer.json", reviews(1, 100)["text"])
    return tmp_path / "tokenizer.json"


def test_tokens_of_a_tokenizer_file(file, tokenizer):
    """Neither cut nor padded, though the file asks for both."""
    from tokenizers import Tokenizer

    task = task_of(file, 4000, label_column="stars", tokenizer=str(tokenizer))
    opened = Tokenizer.from_file(str(tokenizer))
    opened.no_truncation()
    opened.no_padding()
    assert task.vocab_size == opened.get_vocab_size() + 1
    expected = sorted([token + 1 for token in opened.encode(text).ids] for text in reviews(0, 200)["text"])
    found = []
    for split in ("train", "validation", "test"):
        whole = task.whole(split)
        found += [ids[~padding].tolist() for ids, padding in zip(whole.inputs, whole.padding, strict=True)]
    assert sorted(found) == expected
    short = task_of(file, 16, label_column="stars", tokenizer=str(tokenizer))
    assert short.sample_lengths("test").max() == 16
    assert "longer than 16" in short.notes()[-1]


def test_the_tokenizer_is_not_opened_where_the_cache_has_the_rows(file, tokenizer, monkeypatch):
    task_of(file, label_column="stars", tokenizer=str(tokenizer)).prepare()
    monkeypatch.setattr(tasks.classify, "open_tokenizer", lambda *_: pytest.fail("opened"))
    again = task_of(file, label_column="stars", tokenizer=str(tokenizer))
    assert again.vocab_size > 2
    assert again.size("test") > 0


def test_a_tokenizer_of_transformers(file, tmp_path):
    """A folder without a tokenizer.json."""
    pytest.importorskip("transformers")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "film",
        "great",
        "moving",
        "awful",
        "dull",
        "caf",
        "##e",
    ]
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 5}')
    task = task_of(file, 4000, label_column="stars", tokenizer=str(folder))
    assert task.vocab_size == len(words) + 1
    of_word = {word: [words.index(word) + 1] for word in words} | {"café": [words.index("caf") + 1, len(words)]}
    unknown = [words.index("[UNK]") + 1]
    expected = [[n for word in text.split() for n in of_word.get(word, unknown)] for text in reviews(0, 200)["text"]]
    found = []
    for split in ("train", "validation", "test"):
        whole = task.whole(split)
        found += [ids[~padding].tolist() for ids, padding in zip(whole.inputs, whole.padding, strict=True)]
    assert all(row in expected for row in found)
    assert {tuple(row) for row in found} == {tuple(row) for row in expected}


def test_a_tokenizer_that_is_not_there(file, monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"could not open the tokenizer owner/model .*out of reach"):
        task_of(file, label_column="stars", tokenizer="owner/model").prepare()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="could not read the tokenizer"):
        task_of(file, label_column="stars", tokenizer=str(tmp_path)).prepare()


def test_a_missing_library_is_named(file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ValueError, match="needs transformers: pip install transformers"):
        task_of(file, label_column="stars", tokenizer="owner/model").prepare()


def test_majority_counts_on_train_and_scores_on_test():
    assert majority(np.array([0, 1, 1]), np.array([1, 0, 0, 0])) == 0.25


def test_hashed_ngrams_see_pairs_of_words():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=600)
    texts = ["not good here bad" if label else "good not bad here" for label in labels]
    assert hashed_ngrams(texts[:400], labels[:400], texts[400:], labels[400:]) == 1
    shuffled = rng.permutation(labels)
    assert hashed_ngrams(texts[:400], shuffled[:400], texts[400:], shuffled[400:]) < 0.7
    assert hashed_ngrams(["a", "b"], np.array([1, 1]), ["a", "b"], np.array([1, 0])) == 0.5


def test_some_rows_stay_within_their_total():
    lengths = np.arange(1, 101)
    rows = some_rows(lengths, 1000)
    assert lengths[rows].sum() <= 1000 < lengths[rows].sum() + 100
    assert (np.diff(rows) > 0).all()
    assert some_rows(lengths, 10**9).tolist() == list(range(100))
    assert len(some_rows(lengths, 0)) == 1


@pytest.mark.slow
def test_a_small_model_learns(tmp_path):
    datasets.Dataset.from_dict(reviews(0, 3000)).to_csv(str(tmp_path / "reviews.csv"))
    score, _ = learns(small_spec("classify", 64, {"data": str(tmp_path / "reviews.csv")}, steps=60))
    assert score > 0.75
