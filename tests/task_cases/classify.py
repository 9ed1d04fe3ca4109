"""Small samples of classify: one split with named classes; three with a tokenizer, where that can be made."""

from importlib.util import find_spec
from pathlib import Path

import datasets

from tests.task_cases.text import reviews


def write_tokenizer(file: Path, texts: list[str]) -> None:
    """A tokenizer of whole words and single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=200, special_tokens=["[UNK]"]))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(file))


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    made = reviews(0, 400)
    named = datasets.Dataset.from_dict({"body": made["text"], "stars": [("bad", "good")[n] for n in made["label"]]})
    named.save_to_disk(str(folder / "one"))
    first: dict[str, object] = {"data": str(folder / "one"), "label_column": "stars"}
    if not find_spec("tokenizers"):
        return [(48, first)]
    splits = {
        split: datasets.Dataset.from_dict(reviews(seed, 250 - seed)) for seed, split in enumerate(("train", "dev"))
    }
    datasets.DatasetDict(splits).save_to_disk(str(folder / "two"))
    write_tokenizer(folder / "tokenizer.json", splits["train"]["text"][:])
    return [(48, first), (32, {"data": str(folder / "two"), "tokenizer": str(folder / "tokenizer.json")})]
