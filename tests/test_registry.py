"""Describing backends, registering them, and what breaks their contract."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from zoo import Encoder, MultiHeadAttention, available, describe, register
from zoo.contract import Attention, Dims, Mixer, Traits
from zoo.entry import REFERENCE, Entry, format_bytes
from zoo.registry import _entries

pytestmark = pytest.mark.usefixtures("own_registry")

TRAITS = Traits(family="test", source="none", year=None, time="O(N)", memory="O(N)", causal=False)


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    scale: float = 1.0


class PlainAttention(Attention):
    """Values, scaled."""

    traits = TRAITS

    def __init__(self, dims: Dims, config: PlainConfig) -> None:
        super().__init__(dims)
        self.scale = config.scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return self.scale * v


@pytest.fixture
def plain(own_registry: None) -> None:
    register("plain", config=PlainConfig)(PlainAttention)


@pytest.mark.usefixtures("plain")
def test_a_registered_backend_is_available_everywhere() -> None:
    assert "plain" in available()
    assert describe("plain").options == {"scale": 1.0}
    assert describe("plain").summary == "Values, scaled."
    assert not describe("plain").own
    encoder = Encoder(PlainConfig(scale=2.0), d_model=8, n_heads=2, n_layers=1, max_len=16)
    assert encoder(torch.randn(1, 5, 8)).shape == (1, 5, 8)


@pytest.mark.usefixtures("plain")
def test_two_backends_of_one_name_are_refused_and_both_are_named() -> None:
    @dataclass(frozen=True)
    class OtherConfig:
        pass

    class Other(PlainAttention):
        pass

    said = r"cannot register .*test_registry:.*Other as 'plain'.*test_registry:PlainAttention is registered as 'plain'"
    with pytest.raises(ValueError, match=said):
        register("plain", config=OtherConfig)(Other)
    with pytest.raises(ValueError, match=r"cannot register .*Other as 'other' with PlainConfig"):
        register("other", config=PlainConfig)(Other)
    with pytest.raises(ValueError, match=r"PlainAttention as 'other' .*PlainAttention is registered as 'plain'"):
        register("other", config=PlainConfig)(PlainAttention)
    assert register("plain", config=PlainConfig)(PlainAttention) is PlainAttention


def test_a_class_defined_again_takes_the_place_of_the_former() -> None:
    def cell(default: float) -> None:
        @dataclass(frozen=True)
        class Config:
            scale: float = default

        @register("again", config=Config)
        class Again(PlainAttention):
            pass

    cell(1.0)
    cell(2.0)
    assert describe("again").options == {"scale": 2.0}


def test_unknown_names_get_the_closest_match_and_the_list() -> None:
    with pytest.raises(ValueError, match=r"unknown attention 'reforme'. Did you mean 'reformer'\? Available: .*full, "):
        describe("reforme")


def test_describe_prints_all_of_a_backend() -> None:
    text = str(describe("linformer"))
    for part in (
        "linformer: Keys and values projected along the sequence to a fixed rank.",
        "low-rank",
        "Wang et al., arXiv:2006.04768 (2020)",
        "O(N·M) for a forward",
        "O(N) kept for backward",
        "no causal form, subquadratic",
        "+524,288 relative to full, in one layer of d_model 512, 8 heads, max_len 1024",
        "state       1.0 MiB that a query reads of 1024 positions, in such a layer in float32",
        "cache       no step form",
        "directions  at once\n",
        "capacity    rank=256",
        "rank=256: M, how many positions",
        "sharing=heads: ``none`` (E and F for each head)",
        "init        queries and keys of variance 0.33: torch's default for nn.Linear",
        "exceptions  none",
        "zoo.attention.linformer:LinformerAttention",
    ):
        assert part in text, part
    assert max(map(len, text.splitlines())) <= 100
    assert describe("linformer").capacity == ("rank", 256)
    assert describe("full").capacity is None
    assert "variance 0.33: nn.Linear's default, as in performer-pytorch" in str(describe("performer"))
    assert "init        the backend's own" in str(describe("luna"))


def test_every_option_of_one_line_or_of_many_is_explained() -> None:
    assert describe("reformer").explanations == {
        "n_hashes": "R, rounds of hashing.",
        "bucket_size": "S, mean positions in a bucket, and the chunk length.",
        "kernel": "``triton`` (GPUs only), ``torch``, or ``auto`` (the first of the two that can run).",
    }
    assert set(describe("block_sparse").explanations) == set(describe("block_sparse").options)


def test_exceptions_and_defaults_from_a_factory_are_described() -> None:
    class Odd(PlainAttention):
        """Odd."""

        traits = replace(TRAITS, exceptions={"batch": "it sees its batch-mates"})

    assert "batch: it sees its batch-mates" in str(Entry("odd", Odd, PlainConfig))


def test_parameters_added_are_those_of_a_layer(name: str) -> None:
    def count(attn: str) -> int:
        layer = MultiHeadAttention(attn, d_model=REFERENCE.d_model, n_heads=REFERENCE.n_heads, max_len=1024)
        return sum(parameter.numel() for parameter in layer.parameters())

    state = torch.get_rng_state()
    assert Entry(name, describe(name).cls, describe(name).config).parameters_added == count(name) - count("full")
    torch.set_rng_state(state)
    Entry(name, describe(name).cls, describe(name).config).parameters_added  # noqa: B018
    assert torch.equal(torch.get_rng_state(), state), "counting draws from the caller's generator"


def test_parameters_of_the_controls_are_fewer_and_of_a_broken_plugin_unknown() -> None:
    assert describe("none").parameters_added == -2 * (512**2 + 512)

    class Broken(PlainAttention):
        def __init__(self, dims: Dims, config: PlainConfig) -> None:
            raise RuntimeError("not today")

    entry = Entry("broken", Broken, PlainConfig)
    assert entry.parameters_added is None
    assert "unknown relative to full" in str(entry)


def test_the_state_is_that_of_the_layer_and_may_be_left_unsaid() -> None:
    assert describe("full").state_bytes == 4 * 2 * 1024 * 512
    assert describe("none").state_bytes == 0
    for attn, state in (("linear", 8 * 64 * 65), ("mean", 512)):
        layer = MultiHeadAttention(attn, d_model=512, n_heads=8, max_len=1024)
        assert 4 * layer.state_size(1024) == 4 * state == describe(attn).state_bytes

    entry = Entry("plain", PlainAttention, PlainConfig)
    assert PlainAttention(REFERENCE, PlainConfig()).state_size(1024) is None
    assert entry.state_bytes is None
    assert "state       unknown" in str(entry)


def test_the_cache_is_what_steps_keep_and_blank_without_a_step_form() -> None:
    entry = describe("linear")
    assert entry.cache_bytes == 4 * 8 * 64 * 65
    assert "cache       130 KiB that steps store after 1024 positions, in such a layer in float32" in str(entry)
    layer = MultiHeadAttention("linear", d_model=512, n_heads=8, max_len=1024, causal=True)
    _, state = layer.step(torch.randn(3, 512))
    assert 4 * state.size == entry.cache_bytes, "of one sample"
    assert describe("linformer").cache_bytes is None
    assert Entry("plain", PlainAttention, PlainConfig).cache_bytes is None


def test_directions_tell_how_both_sides_are_seen_and_whether_one_can_be() -> None:
    assert describe("linformer").directions == "at once"
    assert describe("linear").directions == "at once, causal"

    class Recurrent(PlainAttention):
        """Recurrent."""

        traits = replace(TRAITS, causal=True, bidirectional="two scans, summed")

    assert "directions  two scans, summed, causal" in str(Entry("recurrent", Recurrent, PlainConfig))


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (2048, "2 KiB"), (133_120, "130 KiB"), (2**20, "1.0 MiB"), (2**31, "2048.0 MiB")]
)
def test_bytes_are_written_short(number: int, text: str) -> None:
    assert format_bytes(number) == text


@dataclass
class ThawedConfig:
    pass


@dataclass(frozen=True)
class NeedyConfig:
    size: int


class WithoutTraits(Attention):
    def __init__(self, dims: Dims, config: PlainConfig) -> None:
        super().__init__(dims)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return v


class WrongCapacity(PlainAttention):
    traits = replace(TRAITS, capacity="rank")


class WithoutForward(Attention):
    traits = TRAITS

    def __init__(self, dims: Dims, config: PlainConfig) -> None:
        super().__init__(dims)


class WithoutMask(PlainAttention):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        return v


class PositionalMask(PlainAttention):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        return v


class HeadsForMixer(Mixer):
    traits = TRAITS

    def __init__(self, dims: Dims, config: PlainConfig) -> None:
        super().__init__(dims)

    def forward(self, q, k, v, *, key_padding_mask=None):
        return v


class OwnSizes(PlainAttention):
    def __init__(self, d_model: int, config: PlainConfig) -> None:
        super().__init__(d_model, config)


class WithoutInit(Attention):
    traits = TRAITS

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return v


@pytest.mark.parametrize(
    ("title", "cls", "config", "rule"),
    [
        ("My-Attention", PlainAttention, PlainConfig, "name is made of a-z, 0-9 and _, .* got 'My-Attention'"),
        ("2mine", PlainAttention, PlainConfig, "starts with a letter, got '2mine'"),
        ("mine", nn.Linear, PlainConfig, "must subclass zoo.Attention or zoo.Mixer, got Module"),
        ("mine", describe, PlainConfig, "must subclass .* got no class"),
        ("mine", PlainAttention, dict, "config must be a frozen dataclass, got dict: write @dataclass"),
        ("mine", PlainAttention, PlainConfig(), r"config must be .* got PlainConfig\(scale=1.0\): write @dataclass"),
        ("mine", PlainAttention, ThawedConfig, "config must be a frozen dataclass, got ThawedConfig"),
        ("mine", PlainAttention, NeedyConfig, "every option needs a default, NeedyConfig.size has none"),
        ("mine", WithoutTraits, PlainConfig, "traits must be a zoo.Traits, got None: write traits = Traits"),
        ("mine", WrongCapacity, PlainConfig, r"capacity must name an option of PlainConfig \(scale\), got 'rank'"),
        ("mine", WithoutForward, PlainConfig, "must define forward"),
        (
            "mine",
            WithoutMask,
            PlainConfig,
            r"forward must take \(q, k, v, \*, key_padding_mask=None\), got \(q, k, v\)",
        ),
        ("mine", PositionalMask, PlainConfig, r"got \(q, k, v, key_padding_mask=None\)"),
        ("mine", HeadsForMixer, PlainConfig, r"forward must take \(x, \*, key_padding_mask=None\), got \(q, k, v,"),
        ("mine", OwnSizes, PlainConfig, r"__init__ must take \(dims, config\), got \(d_model, config\)"),
        ("mine", WithoutInit, PlainConfig, r"__init__ must take \(dims, config\), got \(dims\)"),
    ],
)
def test_what_breaks_the_contract_is_refused_and_the_rule_is_named(title: str, cls, config, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"^\S+:\S+ breaks the contract: .*{rule}") as caught:
        register(title, config=config)(cls)
    assert "\n" not in str(caught.value)
    assert title not in _entries


def test_a_mixer_without_its_last_map_is_refused_when_built() -> None:
    class Endless(Mixer):
        traits = TRAITS

        def __init__(self, dims: Dims, config: PlainConfig) -> None:
            super().__init__(dims)

        def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
            return x

    register("endless", config=PlainConfig)(Endless)
    with pytest.raises(ValueError, match=r"Endless breaks the contract: a Mixer must end in .* out, got NoneType"):
        MultiHeadAttention("endless", d_model=8, n_heads=2)


@pytest.mark.parametrize(
    ("returns", "got"),
    [
        (lambda v: v[..., :-1, :], r"got shape \(2, 2, 4, 4\) of torch.float32"),
        (lambda v: v.transpose(1, 2), r"got shape \(2, 5, 2, 4\)"),
        (lambda v: v.double(), r"got shape \(2, 2, 5, 4\) of torch.float64"),
        (lambda v: (v, None), "got tuple"),
        (lambda v: None, "got NoneType"),
    ],
)
def test_a_layer_names_the_rule_that_an_output_breaks(returns, got: str) -> None:
    class Wrong(PlainAttention):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
            result: Tensor = returns(v)
            return result

    register("wrong", config=PlainConfig)(Wrong)
    layer = MultiHeadAttention("wrong", d_model=8, n_heads=2)
    said = (
        r"Wrong breaks the contract: forward must return its input's "
        rf"shape \(2, 2, 5, 4\) and dtype torch.float32, {got}"
    )
    with pytest.raises(ValueError, match=said):
        layer(torch.randn(2, 5, 8))


def test_a_layer_names_the_rule_that_a_mixer_breaks() -> None:
    class Short(Mixer):
        traits = TRAITS

        def __init__(self, dims: Dims, config: PlainConfig) -> None:
            super().__init__(dims)
            self.out = nn.Linear(dims.d_model, dims.d_model)

        def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
            y: Tensor = self.out(x[:, :1])
            return y

    register("short", config=PlainConfig)(Short)
    layer = MultiHeadAttention("short", d_model=8, n_heads=2)
    with pytest.raises(ValueError, match=r"Short breaks the contract: .* shape \(2, 5, 8\) .* got shape \(2, 1, 8\)"):
        layer(torch.randn(2, 5, 8))
