"""Which attention suits my texts? Trains three on a csv file and prints their scores.

python examples/choose_attention.py reviews.csv --text-column review --label-column stars
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

VARIANTS = "full,linear,local"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--text-column")
    parser.add_argument("--label-column")
    parser.add_argument("--seq-len", default="1024")
    parser.add_argument("--steps", default="200")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "compare", "--variants", VARIANTS, "--out", out]
        command += ["--task", "classify", "--data", options.data]
        command += ["--seq-len", options.seq_len, "--steps", options.steps]
        for name in ("text_column", "label_column"):
            if value := getattr(options, name):
                command += [f"--{name.replace('_', '-')}", value]
        subprocess.run(list(map(str, command)), check=True)
        records = [json.loads(line) for line in (out / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records:
        if record["status"] == "ok":
            print(
                f"{record['label']:8} accuracy {record['test_score']:.1%}, a step {1e3 * record['step_seconds']:.0f} ms"
            )
        else:
            print(f"{record['label']:8} {record['status']}: {record['reason']}")


if __name__ == "__main__":
    main()
