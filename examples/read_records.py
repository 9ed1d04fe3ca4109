"""Print records as a pandas table: the mean score and the time of a step of each variant.

python examples/read_records.py results/cpu-2core/main
"""

import sys
from pathlib import Path

import pandas as pd


def main(folder: Path) -> None:
    records = pd.read_json(folder / "records.jsonl", lines=True)
    results = records[(records.status == "ok") & records.test_score.notna()]
    table = results.groupby(["task", "seq_len", "label"]).agg(
        score=("test_score", "mean"), seeds=("seed", "nunique"), step_ms=("step_seconds", lambda s: 1e3 * s.median())
    )
    print(table.sort_values("score", ascending=False).to_string(float_format="{:.3f}".format))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
