"""Uploads a folder of results to the Hugging Face hub, as a dataset with a card."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, DatasetCardData, HfApi

from compare.errors import UsageError
from compare.folder import check_foreign, check_records
from compare.report import Report, read_source, write_report
from compare.units import size

FILES = ("records.jsonl", "environment.json", "table.csv", "table.tex", "report.md", "report.html", "charts/*.png")
NAME = r"[A-Za-z0-9][\w-]*/\w[\w.-]*"
CARD = """---
{header}
---
# {title}

{sentences}

The page `report.html` has all charts and tables. `table.csv` has a line for each variant and length, `records.jsonl`
the record of each run with its learning curve, and `environment.json` describes the machines.
`python -m compare report DIR` draws the page again; `python -m compare merge` joins it with other results.

```sh
{commands}
```
"""


def publish(options: argparse.Namespace) -> int:
    """Draw the report of a folder into a copy and upload it with the records, or print what would be uploaded.

    Raises:
        UsageError: a folder without records, a name that the hub refuses, no login or no connection.
    """
    folder: Path = options.folder
    check_records([folder])
    check_foreign(folder)
    if re.fullmatch(NAME, options.repo) is None:
        raise UsageError(f"--repo: expected user/name, got {options.repo!r}")
    with TemporaryDirectory() as name:
        drawn = Path(name)
        for source in (folder / "records.jsonl", folder / "environment.json"):
            if source.exists():
                shutil.copy(source, drawn)
        return publish_drawn(drawn, card(drawn, write_report(drawn), options.repo, options.license), options)


def publish_drawn(folder: Path, text: str, options: argparse.Namespace) -> int:
    """Upload a folder with its report and the card ``text``, or print what would be uploaded."""
    files = [path for pattern in FILES for path in sorted(folder.glob(pattern))]
    if options.dry_run:
        print(text)
        for path in files:
            print(f"{path.relative_to(folder).as_posix()}  {size(path.stat().st_size)}")
        return 0
    operations = [CommitOperationAdd("README.md", text.encode())]
    operations += [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    try:
        hub = HfApi()
        hub.create_repo(options.repo, repo_type="dataset", private=options.private or None, exist_ok=True)
        done = hub.create_commit(
            options.repo, operations, commit_message="Results of a comparison of attentions", repo_type="dataset"
        )
    except Exception as error:  # of the hub, or of its HTTP library, which differs between its versions
        raise UsageError(f"--repo {options.repo}: {' '.join(str(error).split())}") from error
    print(done)
    return 0


def card(folder: Path, report: Report, repo: str, license_name: str | None) -> str:
    """The card of the dataset: what the hub reads, the first sentences of the report, and the commands."""
    header = DatasetCardData(
        license=license_name,
        pretty_name=f"Comparison of attentions: {repo.rpartition('/')[2]}",
        tags=["attention-zoo", "benchmark", "efficient-attention"],
        configs=[{"config_name": "table", "data_files": "table.csv", "default": True}],
    )
    source = read_source(folder)
    commands = dict.fromkeys(str(source.environment_of(record).get("command", "")) for record in source.records)
    return CARD.format(
        header=header.to_yaml(),
        title=f"Comparison of attentions: {repo.rpartition('/')[2]}",
        sentences="\n".join(f"- {sentence}" for sentence in report.sentences),
        commands="\n".join(commands),
    )
