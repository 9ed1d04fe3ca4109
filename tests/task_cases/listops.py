"""Small samples of listops: generated, and from files as Long Range Arena writes them."""

import random
from pathlib import Path


def expression(draw: random.Random) -> str:
    """A flat one, with the parentheses of Long Range Arena."""
    text = draw.choice(["[MIN", "[MAX", "[MED", "[SM"])
    for _ in range(draw.randint(4, 30)):
        text = f"( {text} {draw.randint(0, 9)} )"
    return f"( {text} ] )"


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    draw = random.Random(0)
    for name, rows in (("train", 300), ("val", 40), ("test", 40)):
        lines = [f"{expression(draw)}\t{draw.randint(0, 9)}\r\n" for _ in range(rows)]
        lines[1] = lines[0]
        text = "Source\tTarget\r\n" + "".join(lines)
        (folder / f"basic_{name}.tsv").write_text(text, encoding="utf-8", newline="")
    return [(64, {"samples": 320}), (24, {"data": str(folder)})]
