"""Made-up records for the tests of the report: no run stands behind them."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

ENVIRONMENT: dict[str, Any] = {
    "python": "3.11.7",
    "torch": "2.13.0",
    "platform": "Linux-6.1-x86_64",
    "cpu": "Intel(R) Xeon(R) CPU @ 2.60GHz",
    "cores": 2,
    "threads": 2,
    "memory_bytes": 16 * 2**30,
    "device": "cpu",
    "gpu": None,
    "packages": {"numpy": "2.4.6"},
    "git_commit": "0123abc",
    "command": "python -m compare --variants full,linformer --seq-len 8192",
    "started": "2026-11-22T12:00:00+00:00",
}
BASELINES = {"bytes": {"unigram": 0.292, "neighbour bigram": 0.451}, "mqar": {"chance": 0.016}}

# Final score, tokens per second, memory and parameters of an imagined variant at length 1,024.
PROFILES: dict[str, tuple[float, float, float, int]] = {
    "full": (0.52, 9_000, 420e6, 1_240_000),
    "linformer": (0.47, 21_000, 190e6, 1_510_000),
    "linear": (0.46, 26_500, 150e6, 1_240_000),
    "performer": (0.465, 17_200, 240e6, 1_240_000),
    "local": (0.515, 19_800, 205e6, 1_240_000),
    "xformers": (0.521, 9_300, 400e6, 1_240_000),
    "none": (0.44, 31_000, 120e6, 1_110_000),
}
QUADRATIC = {"full", "naive", "xformers"}
FAMILIES = {
    "exact": ("full", "naive", "xformers"),
    "fixed sparse": ("local", "block_sparse", "bigbird", "longformer", "dilated"),
    "content sparse": ("reformer", "routing", "sinkhorn", "clusterformer"),
    "low-rank": ("linformer", "nystromformer", "luna", "skyformer"),
    "learned pattern": ("synthesizer_dense", "synthesizer_random", "tensorized"),
    "kernel": ("linear", "performer", "cosformer", "random_features", "fastmax", "gated_linear"),
    "control": ("none",),
}
MANY = tuple(name for names in FAMILIES.values() for name in names)  # 26 of them
FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names}
OPTIONS = {
    "linformer": "rank=128",
    "local": "window=64",
    "block_sparse": "block_size=32",
    "performer": "features=256",
    "reformer": "bucket_size=64",
}


def make_record(
    variant: str,
    *,
    label: str | None = None,
    task: str = "bytes",
    seq_len: int = 1024,
    seed: int = 0,
    status: str = "ok",
    budget: int = 90,
) -> Record:
    """One plausible record; a failed one has its measured fields empty."""
    noise = random.Random(f"{variant} {task} {seq_len} {seed}")
    score, speed, memory, params = PROFILES.get(variant) or make_profile(variant)
    longer = seq_len / 1024
    speed *= noise.uniform(0.97, 1.03) / (longer if variant in QUADRATIC else 1)
    memory *= longer ** (1.6 if variant in QUADRATIC else 1)
    score += noise.gauss(0, 0.006) + (0.3 if task == "mqar" and variant in QUADRATIC else 0)
    step = 2 * seq_len / speed
    finished = status == "ok"
    measured = {
        "test_score": score,
        "test_loss": 2.1,
        "test_size": 49_152,
        "val_score": score - 0.004,
        "val_size": 12_288,
        "tokens_per_second": speed,
        "step_seconds": step,
        "step_seconds_spread": [0.96 * step, 1.07 * step],
        "forward_seconds": 0.3 * step,
        "forward_seconds_spread": [0.29 * step, 0.32 * step],
        "forward_backward_seconds": 0.9 * step,
        "forward_backward_seconds_spread": [0.87 * step, 0.96 * step],
        "peak_memory_bytes": int(memory),
        "train_memory_bytes": int(memory) + 12 * params,
        "saved_bytes": int(0.7 * memory),
        "state_bytes": 4 * 2 * 128 * (seq_len if variant in QUADRATIC else 64),
        "flops": 2.4e11 * longer,
        "train_steps": int(budget / step),
        "train_seconds": float(budget),
        "train_tokens": int(budget * speed),
        "train_cpu_seconds": 1.96 * budget,
        **{
            "train_others_share": 0.02,
            "train_lost_share": 0.01,
            "measure_others_share": 0.03,
            "measure_lost_share": 0.02,
        },
    }
    return {
        "schema": 3,
        "run_id": f"{label or variant}-{task}-{seq_len}-{seed}-{budget}",
        "variant": variant,
        "label": label or variant,
        "family": FAMILY_OF.get(variant),
        "task": task,
        "seq_len": seq_len,
        "seed": seed,
        "status": status,
        "reason": "" if finished else f"{status} after 3 steps <at {seq_len}>",
        "kernel": "torch sdpa math" if variant == "xformers" else "sdpa flash" if variant == "full" else "torch",
        "kernel_fallback": variant == "xformers",
        "params": params,
        "metric": "accuracy",
        "baselines": BASELINES.get(task, {}),
        **{field: value if finished else None for field, value in measured.items()},
        "curve": make_curve(score, step, budget, seq_len, noise) if finished else [],
        "data": {"corpus_sha256": "5f" * 32, "python": "3.11.7"},
        "spec": {
            **{
                "variant": variant,
                "options": [part.split("=") for part in (label or "").split() if "=" in part],
                "task": task,
                "seq_len": seq_len,
                "seed": seed,
            },
            **{"steps": None, "budget": budget, "batch_size": 2, "d_model": 128, "n_heads": 4, "n_layers": 2},
            **{"lr": 1e-3, "device": "cpu", "dtype": "float32"},
        },
        "command": ENVIRONMENT["command"],
        "started": "2026-11-22T12:00:00+00:00",
        "wall_seconds": budget + 30.3,
    }


def make_decoded(variant: str, *, seq_len: int, seed: int = 0, status: str = "ok", batch_size: int = 1) -> Record:
    """One record of decoding: what attends exactly keeps all that it has seen, the control keeps nothing."""
    record = make_record(variant, seq_len=seq_len, seed=seed, status=status)
    kept = ("schema", "run_id", "variant", "label", "family", "task", "seq_len", "seed", "status", "reason", "spec")
    record = {field: record[field] for field in (*kept, "metric", "baselines", "data", "command", "started")}
    record["run_id"] += "-decode"
    record["spec"] |= {"decode": True, "steps": 0, "budget": None, "batch_size": batch_size}
    record["wall_seconds"] = 12.5
    if status != "ok":
        return record
    noise, own = random.Random(f"{variant} {seq_len} {seed}"), random.Random(variant)
    grows = variant in QUADRATIC
    time = (3e-4 + 1e-7 * seq_len if grows else own.uniform(4e-4, 8e-4)) * noise.uniform(0.99, 1.01)
    positions = seq_len if grows else 0 if variant == "none" else own.choice([64, 100, 128, 150])
    return record | {
        **{"token_seconds": time, "token_seconds_spread": [0.97 * time, 1.06 * time]},
        "cache_bytes": 4 * 2 * 2 * 128 * positions,  # keys and values of two layers
        **{"params": 1_240_000, "kernel": "torch ops", "kernel_fallback": False},
    }


# Of noisy recall: score, seconds and bytes of a training step, bytes of state a layer.
RECALL = {
    "full": (0.9996, 1.31, 1.62e9, 2**22),
    "linear": (0.975, 0.44, 0.41e9, 2**13),
    "linformer": (0.0089, 0.37, 0.52e9, 2**17),
    "none": (0.0091, 0.21, 0.3e9, 0),
}
CANNOT = "its projections over positions are the same for every sample, so it finds no key whose place changes"


def make_recall(variant: str, *, score: float | None = None, seed: int = 0, **task_options: int) -> Record:
    """A run of the default comparison; with another score, at other options of its task."""
    usual, step, memory, state = RECALL[variant]
    record = make_record(variant, task="noisy_recall", seq_len=8192, seed=seed, budget=60)
    record["spec"]["task_options"] = [[name, value] for name, value in task_options.items()]
    record["run_id"] += "".join(f"-{name}-{value}" for name, value in task_options.items())
    reached = (usual if score is None else score) + 1e-4 * seed
    for point in record["curve"]:
        point["val_score"] = point["val_score"] and reached * point["val_score"]
    return record | {
        "task_summary": "say which value stands beside each of 16 keys that are hidden in noise",
        "remark": CANNOT if variant == "linformer" else "",
        **{"test_score": reached, "step_seconds": step, "step_seconds_spread": [0.98 * step, 1.03 * step]},
        **{"tokens_per_second": 8192 / step, "peak_memory_bytes": memory, "state_bytes": state},
        "baselines": {"most frequent value": 0.0171},
    }


def swept_recall(seeds: int = 1) -> list[Record]:
    """Numbers of pairs that full recalls all of, and linear some."""
    scores = {
        "full": {4: 1.0, 16: 0.999, 64: 1.0, 256: 1.0},
        "linear": {4: 0.981, 16: 0.917, 64: 0.698, 256: 0.231},
        "linformer": dict.fromkeys((4, 16, 64, 256), 0.011),
        "none": dict.fromkeys((4, 16, 64, 256), 0.009),
    }
    return [
        make_recall(variant, score=score, seed=seed, pairs=pairs)
        for seed in range(seeds)
        for variant, of in scores.items()
        for pairs, score in of.items()
    ]


def make_profile(variant: str) -> tuple[float, float, float, int]:
    own = random.Random(variant)
    return own.uniform(0.45, 0.52), own.uniform(9_000, 28_000), own.uniform(140e6, 420e6), 1_240_000


def many_records(lengths: Sequence[int] = (1024, 4096), seeds: int = 3, task: str = "bytes") -> list[Record]:
    """26 variants of seven families. Naive attention does not fit the longest, two runs diverge, one variant fails."""
    records = []
    for variant in MANY:
        for length in lengths:
            for seed in range(seeds):
                status = "ok"
                if variant == "naive" and length == max(lengths):
                    status = "oom"
                elif variant == "clusterformer":
                    status = "error"
                elif variant in ("fastmax", "synthesizer_random") and seed == 1:
                    status = "diverged"
                label = f"{variant} {OPTIONS[variant]}" if variant in OPTIONS else None
                record = make_record(variant, label=label, task=task, seq_len=length, seed=seed, status=status)
                records.append(record)
    return records


def make_curve(score: float, step: float, budget: float, seq_len: int, noise: random.Random) -> list[Record]:
    """Thirty points of a rise from nearly nothing, the length warmed up in three stages."""
    points, seconds, tokens, done = [], 0.0, 0, 0
    for index in range(1, 31):
        share = index / 30
        length = seq_len // 16 if share <= 0.5 else seq_len // 4 if share <= 0.75 else seq_len
        seconds = budget * share * noise.uniform(0.995, 1.0)
        done = max(done + 1, int(seconds / step))
        tokens = done * 2 * seq_len
        reached = 0.2 + (score - 0.2) * (1 - 2.7 ** (-4 * share)) / 0.98 + noise.gauss(0, 0.004)
        validated = index % 3 == 0
        points.append(
            {
                **{"step": done, "seconds": seconds, "tokens": tokens, "flops": 9e6 * tokens},
                "seq_len": max(length, 16),
                **{"train_loss": 3 - share, "train_score": reached + noise.gauss(0, 0.02)},
                **{"val_loss": 3 - share if validated else None, "val_score": reached if validated else None},
            }
        )
    return points


def write_folder(folder: Path, records: Sequence[Record], environment: Record = ENVIRONMENT) -> Path:
    """A results folder as a comparison leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(record) + "\n" for record in records)
    (folder / "records.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    return folder
