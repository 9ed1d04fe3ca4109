"""What a layer keeps of a sequence: ``state_size`` beside what a query in truth reads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import Case, cases
from zoo import available, describe
from zoo.contract import Attention, Dims
from zoo.entry import REFERENCE
from zoo.registry import build

OWN = [name for name in available() if describe(name).own]
SIZES = {"window", "block_size", "n_global", "n_random", "segment", "stride", "summary", "k", "n_hashes", "bucket_size"}
SIZES |= {"features", "rank", "landmarks", "projected_len", "conv_width", "state", "expand"}


def pairs(case: Case, length: int) -> tuple[int, Tensor]:
    """``state_size``, and which position each query reads in each head, (H, N, N) bool.

    Values that are the rows of the unit matrix come out as the weights: so heads are as wide as the input is long.
    """
    n_heads = 1 if case.name == "longformer" else 4
    backend = case.backend(d_model=n_heads * length, n_heads=n_heads, max_len=length).double()
    identity = torch.eye(length, dtype=torch.float64)
    if isinstance(backend, Attention):
        q, k = torch.randn(2, 1, n_heads, length, length, dtype=torch.float64)
        weights = backend(q, q if case.traits.shared_qk else k, identity.expand_as(q))[0]
    else:  # a Mixer makes the values itself
        parameters = backend.state_dict()
        parameters["qkv.weight"][2 * length :] = parameters["out.weight"][:] = identity
        parameters["qkv.bias"][2 * length :] = parameters["out.bias"][:] = 0
        weights = backend(identity[None])
    return backend.state_size(length), weights != 0


def read_by(case: Case, read: Tensor) -> Tensor:
    """Numbers that each query reads: keys and values, as wide as the input is long; without the global queries."""
    config = case.config()
    first = getattr(config, "n_global", 0) * getattr(config, "block_size", 1)
    numbers = 2 * read.shape[-1] * read.sum((0, 2))
    return numbers[min(first, len(numbers) - 1) :]


def patterns(*families: str) -> list[Case]:
    """The cases in which a query reads positions one by one: the soft sort of ``sinkhorn`` mixes them before."""
    found = [case for case in cases() if case.name in OWN and case.traits.family in families]
    return [case for case in found if case.name != "sinkhorn" or ("sort", "top") in case.options]


def divides(pattern: Case, length: int) -> bool:
    """No block is cut short, and one query reads the most in all of its parts."""
    config = pattern.config()
    if pattern.name == "dilated":
        return not pattern.causal and config.segment % config.growth == 0
    return pattern.name != "sparse_transformer" or config.pattern == "strided" or length % config.stride == 0


@pytest.mark.parametrize("length", [96, 50, 7, 1])
@pytest.mark.parametrize("pattern", patterns("exact", "fixed sparse"), ids=str)
def test_the_state_is_what_a_query_reads_at_most(pattern: Case, length: int) -> None:
    state, read = pairs(pattern, length)
    most = read_by(pattern, read).max()
    assert most <= state <= 2 * length * read.shape[0] * length
    if divides(pattern, length):
        assert state == most


@pytest.mark.parametrize("length", [96, 50, 7, 1])
@pytest.mark.parametrize("pattern", patterns("content sparse"), ids=str)
def test_where_the_content_chooses_no_query_reads_more_than_the_state(pattern: Case, length: int) -> None:
    state, read = pairs(pattern, length)
    numbers = read_by(pattern, read).double()
    assert state <= 2 * length * read.shape[0] * length
    if pattern.name == "routing":  # a query may stand in several clusters, and does in one on average
        window = pattern.config().window
        assert 0.9 * state < numbers.mean() <= state * -(-length // window) * max(1, window / length)
    else:
        assert numbers.max() <= state
    if pattern.name in ("topk", "sinkhorn"):
        assert numbers.max() == state
    if pattern.name == "reformer" and not pattern.causal and length > 7:  # rounds overlap, and no position sees itself
        assert numbers.max() > 0.7 * state


def test_a_given_layout_counts_as_it_is() -> None:
    layout = torch.eye(4, dtype=torch.bool)
    layout[2, :3] = True
    config = describe("block_sparse").config(block_size=8, layout=layout)
    backend = build(config, Dims(d_model=16, n_heads=2, max_len=32))
    assert backend.state_size(32) == 2 * 24 * 16
    assert backend.state_size(20) == 2 * 20 * 16


@pytest.mark.parametrize("variant", ["linear", "performer", "cosformer"])
def test_the_state_of_a_kernel_is_what_its_product_keeps(variant: str) -> None:
    backend = build(variant, Dims(d_model=16, n_heads=2, max_len=64))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        backend(*(torch.randn(3, 2, 64, 8, requires_grad=True) for _ in range(3)))
    features = {"linear": 8, "performer": 256, "cosformer": 16}[variant]
    assert (3, 2, features, 8 + 1) in kept
    assert backend.state_size(64) == 2 * features * (8 + 1)


@pytest.mark.parametrize(
    ("variant", "options", "own"),
    [
        ("linformer", {"rank": 5}, 1),
        ("linformer", {"rank": 7, "sharing": "none"}, 1),
        ("nystromformer", {"landmarks": 5, "conv_width": None}, 1),
        ("nystromformer", {"landmarks": 64, "conv_width": None}, 1),
        ("sinkhorn", {"bucket_size": 8}, 8),  # each bucket of queries has keys of its own
        ("routing", {"window": 16}, 4),  # and each cluster
    ],
)
def test_the_state_is_the_size_of_the_keys_and_values_that_queries_meet(
    variant: str, options: dict[str, object], own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = []
    original = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> Tensor:
        met.append(k.numel() + v.numel())
        return original(q, k, v, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    backend = build(describe(variant).config(**options), Dims(d_model=16, n_heads=2, max_len=64))
    backend(*torch.randn(3, 3, 2, 64, 8))
    assert 3 * own * backend.state_size(64) == met[-1]


@pytest.mark.parametrize(("landmarks", "length"), [(6, 64), (5, 64), (64, 33), (1, 2)])
def test_the_state_of_skyformer_is_its_landmarks_and_their_values(landmarks: int, length: int) -> None:
    backend = build(describe("skyformer").config(landmarks=landmarks), Dims(d_model=16, n_heads=2, max_len=64))
    q, k = torch.randn(2, 3, 2, length, 8)
    z, *_ = backend._landmarks(q, k, None)
    assert backend.state_size(length) == 2 * z[0].numel()
    short = (landmarks + 1) // 2  # every key is a landmark, and no other row is read
    assert backend.state_size(short) == 2 * 16 * short


@pytest.mark.parametrize(("variant", "narrowest"), [("luna", "unpack_context"), ("mean", "value")])
def test_the_state_of_a_mixer_is_what_passes_where_it_is_narrowest(variant: str, narrowest: str) -> None:
    backend = build(variant, Dims(d_model=16, n_heads=2, max_len=64))
    passed = []
    backend.get_submodule(narrowest).register_forward_hook(lambda _, inputs, __: passed.append(inputs[0][0].numel()))
    backend(torch.randn(3, 64, 16))
    assert passed == [backend.state_size(64)]


@pytest.mark.parametrize("variant", OWN)
def test_every_backend_keeps_something_that_grows_with_length_and_never_more_than_full(variant: str) -> None:
    backend, full = (build(name, REFERENCE) for name in (variant, "full"))
    sizes = [backend.state_size(length) for length in (1, 2, 63, 64, 65, 500, 1023, 1024)]
    assert all(isinstance(size, int) for size in sizes)
    assert sizes == sorted(sizes)
    assert sizes[-1] <= full.state_size(1024)
    assert (sizes[-1] > 0) == (variant != "none")


CONSTANT = ("kernel", "low-rank", "recurrent", "state space")


@pytest.mark.parametrize("variant", [name for name in OWN if describe(name).traits.family in CONSTANT])
def test_a_state_of_constant_size_does_not_grow_with_length(variant: str) -> None:
    backend = build(variant, Dims(d_model=16, n_heads=2, max_len=8192))
    assert backend.state_size(1024) == backend.state_size(8192)


@pytest.mark.parametrize(
    ("variant", "option"), [(name, option) for name in OWN for option in sorted(SIZES & set(describe(name).options))]
)
def test_more_capacity_never_means_less_state(variant: str, option: str) -> None:
    entry = describe(variant)
    more = 2 * entry.options[option] + (option in ("window", "conv_width"))  # of blocks or taps an odd number
    sizes = [build(config, REFERENCE).state_size(1024) for config in (entry.config(), entry.config(**{option: more}))]
    assert sizes[0] <= sizes[1]
    if option == entry.traits.capacity and variant != "synthesizer":  # whose rank is that of logits, not of values
        assert sizes[0] < sizes[1]
