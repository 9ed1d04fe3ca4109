"""Which attention suits my texts? Trains three backends on a csv file and prints their scores.

    python examples/choose_attention.py reviews.csv --text-column review --label-column stars

Further options go to ``python -m compare``, such as --seq-len 2048, --budget 300, --seeds 3.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main(data: str, *options: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "compare", "--variants", "full,linear,local", "--task", "classify"]
        subprocess.run([*command, "--data", data, "--out", str(out), *options], check=True)
        lines = (out / "records.jsonl").read_text(encoding="utf-8").splitlines()
    for record in map(json.loads, lines):
        result = f"{record['status']}: {record['reason']}"
        if record["status"] == "ok":
            result = f"accuracy {record['test_score']:.1%}, a step {1e3 * record['step_seconds']:.0f} ms"
        print(f"{record['label']:8} {result}")


if __name__ == "__main__":
    main(*sys.argv[1:])
