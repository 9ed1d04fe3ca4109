"""What mkdocs adds to the pages of this folder: the README as home page, and a page for each backend and task.

Links that lead out of this folder lead to the repository; pictures of results come along.
"""

from __future__ import annotations

import inspect
import io
import re
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from mkdocs.structure.files import File, Files

import tasks
import zoo

matplotlib.use("Agg")
ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/attention-zoo/attention-zoo"
LENGTH = 64
SMALL: dict[str, dict[str, int]] = {  # sizes at which a pattern shows at 64 positions
    "local": {"window": 8},
    "longformer": {"window": 8},
    "block_sparse": {"block_size": 8},
    "bigbird": {"block_size": 8, "n_random": 1, "n_global": 1},
    "sparse_transformer": {"stride": 8},
    "dilated": {"segment": 16},
    "reformer": {"bucket_size": 8, "n_hashes": 2},
    "sinkhorn": {"bucket_size": 8},
    "routing": {"window": 16},
    "topk": {"k": 8},
    "based": {"window": 8},
    "aft": {"window": 8},
    "gau": {"chunk": 16},
    "linformer": {"rank": 16},
    "nystromformer": {"landmarks": 16},
    "skyformer": {"landmarks": 16},
    "luna": {"projected_len": 16},
}


def on_files(files: Files, config: Any) -> Files:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for old, new in (("](docs/", "]("), ("](results/", "](../results/"), ("](CITATION", "](../CITATION")):
        readme = readme.replace(old, new)
    files.append(File.generated(config, "index.md", content=readme))
    for path in sorted((ROOT / "results").glob("**/*.png")):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for name in zoo.available():
        if zoo.describe(name).own:
            files.append(File.generated(config, f"backends/{name}.md", content=backend_page(name)))
            files.append(File.generated(config, f"backends/{name}.svg", content=picture(name)))
    for name in tasks.available():
        files.append(File.generated(config, f"tasks/{name}.md", content=task_page(name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Pictures of results are files of the site; names in the tables lead to their pages."""
    markdown = re.sub(r"!\[([^\]]*)\]\((?:\.\./)+results/", r"![\1](results/", markdown)
    markdown = re.sub(r"\]\(\.\./([^)]*)\)", rf"]({REPOSITORY}/blob/main/\1)", markdown)
    if page.file.src_uri in ("index.md", "backends.md"):
        return re.sub(r"^\| `(\w+)` \|", r"| [`\1`](backends/\1.md) |", markdown, flags=re.M)
    if page.file.src_uri == "tasks.md":
        known = "|".join(tasks.available())
        return re.sub(rf"^\| `({known})` \|", r"| [`\1`](tasks/\1.md) |", markdown, flags=re.M)
    return markdown


def backend_page(name: str) -> str:
    """What the file of a backend says, its options, and its pattern."""
    entry = zoo.describe(name)
    module = inspect.getmodule(entry.cls)
    assert module is not None
    return (
        f"# {name}\n\n{entry.summary}\n\n```python\nfrom zoo import Encoder\n\nencoder = Encoder(attn={name!r}, "
        f"vocab_size=258, max_len=1024)\n```\n\n![Which inputs the outputs of {name} depend on]({name}.svg)\n\n"
        f"```text\n{entry}\n```\n\n## From the source\n\n```text\n{(module.__doc__ or '').strip()}\n```\n"
    )


def task_page(name: str) -> str:
    """What the file of a task says."""
    cls = tasks.get(name)
    module = inspect.getmodule(cls)
    assert module is not None
    return f"# {name}\n\n{cls.summary}\n\n```text\n{(module.__doc__ or '').strip()}\n```\n"


def influence(name: str, *, causal: bool) -> torch.Tensor:
    """How much each output of a fresh layer depends on each input: |∂(r·y_i)/∂x_j|, (N, N), each row's largest 1."""
    entry = zoo.describe(name)
    torch.manual_seed(0)
    config = entry.config(**SMALL.get(name, {}))
    layer = zoo.MultiHeadAttention(config, d_model=32, n_heads=2, max_len=LENGTH, causal=causal).eval()
    x = torch.randn(1, LENGTH, 32, requires_grad=True)
    y = layer(x)[0] @ torch.randn(32)
    rows = [torch.autograd.grad(one, x, retain_graph=True)[0][0].norm(dim=-1) for one in y]
    found = torch.stack(rows)
    return found / found.amax(-1, keepdim=True).clamp_min(1e-12)


def picture(name: str) -> str:
    """The influence map of both forms, as SVG."""
    forms = [False, True] if zoo.describe(name).traits.causal else [False]
    figure = Figure(figsize=(3.2 * len(forms), 3.2), layout="constrained")
    for axes, causal in zip(figure.subplots(1, len(forms), squeeze=False)[0], forms, strict=True):
        axes.imshow(influence(name, causal=causal).sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.set_title("causal" if causal else "both directions", fontsize=9)
        axes.set_xlabel("input", fontsize=8)
        axes.set_ylabel("output", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
