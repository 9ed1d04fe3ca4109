"""Published comparisons as commands of this project, with their published figures."""

from __future__ import annotations

from dataclasses import dataclass

from compare.errors import closest


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A published comparison to repeat.

    Attributes:
        summary: the comparison and its source.
        words: the arguments of ``python -m compare`` that repeat it.
        published: source -> variant -> its published score, a fraction.
        departures: sentences on how our runs differ from all sources.
        reasons: variant -> why its score may differ from the published ones.
    """

    summary: str
    words: tuple[str, ...]
    published: dict[str, dict[str, float]]
    departures: tuple[str, ...]
    reasons: dict[str, str]


DELTANET = "Yang et al., arXiv:2406.06484"
METALA = "MetaLA, arXiv:2411.10741"
BENCH = "HassanJbara/lin-attn-bench"

PLANS: dict[str, Plan] = {
    "mad-memorize": Plan(
        summary="memorisation of MAD (Poli et al., arXiv:2403.17844): the mean over vocabularies of 256 to 8192",
        words=(
            *("--variants", "full,hyena,gated_deltanet,mamba2,linear,retnet"),
            *("--tasks", "mad_memorize", "--sweep", "mad_memorize.vocab_size=256:8192", "--causal"),
            *("--steps", "400", "--batch-size", "128", "--n-heads", "4", "--activation", "swiglu", "--seeds", "3"),
            *("--lr-grid", "1e-4,5e-4,1e-3", "--grid-at", "mad_memorize.vocab_size=1024", "--weight-decay", "0"),
            *("--lr-schedule", "cosine", "--warmup", "0"),
        ),
        published={
            DELTANET: {"full": 0.852, "hyena": 0.895, "mamba2": 0.895},
            METALA: {"hyena": 0.895, "mamba2": 0.895},
            BENCH: {"full": 0.788, "mamba2": 0.896, "gated_deltanet": 0.552},
        },
        departures=(
            "The published figures under mamba2 are those of Mamba (arXiv:2312.00752), which this project lacks.",
            "All variants have 4 heads of 32 (MAD: 16 of 8 for attention), LayerNorm (MAD: RMSNorm) and float32 (MAD: "
            "bfloat16).",
            "The search chooses the best of three rates on a validation split, at a vocabulary of 1024 with one seed; "
            "the test uses three seeds at each vocabulary. MAD takes the best of six test scores of one seed at each "
            "vocabulary.",
            "No weight decay. MAD also tries 0.1, which shrinks a weight by at most 2 % over these 400 steps.",
        ),
        reasons={
            "gated_deltanet": "its initialisation. At a vocabulary of 4096 ours scores 58.8 %, and 66.1 % with one "
            "head of 128, as theirs has; from the authors' initialisation these are 3.5 % and 37.9 % (one seed; "
            "results/cpu-2core/initialisation)",
            "full": "perhaps its heads, 4 of 32 where MAD has 16 of 8. The published figures stand on either side of "
            "ours and further from each other than from it (not measured)",
            "hyena": "perhaps float32 and LayerNorm, where MAD has bfloat16 and RMSNorm (not measured)",
        },
    ),
}


def get(name: str) -> Plan:
    """Return the plan of that name.

    Raises:
        ValueError: the name is unknown; the message has the closest match and the list.
    """
    if name in PLANS:
        return PLANS[name]
    raise ValueError(f"expected a plan among {', '.join(PLANS)}, got {name!r}{closest(name, list(PLANS))}")
