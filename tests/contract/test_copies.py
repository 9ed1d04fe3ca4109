"""Copies of a state: they go on as the original would, in another process too, and belong to modules of one kind."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Case
from tests.contract.test_prefill import encoder_of, go_on, refused
from tests.contract.test_steps import KINDS, ONCE, make
from zoo import MultiHeadAttention
from zoo.state import State


def saved(state: State) -> State:
    """Written to a file and read again, as by a process that trusts the file no further than its tensors."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: State = torch.load(file, weights_only=True)
    return loaded


COPIES: dict[str, Callable[[State], State]] = {
    "clone": State.clone,
    "to": lambda state: state.to("cpu"),
    "select": lambda state: state.select(torch.arange(state.batch)),
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "save": saved,
}
MASK = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
WALKERS = pytest.mark.parametrize("walker", ONCE, ids=str)


def begun(walker: Case, key_padding_mask: Tensor | None = None) -> tuple[MultiHeadAttention, State, Tensor, Tensor]:
    """A layer, its state after five positions, the inputs of four further steps, and what they give."""
    layer = walker.sublayer().double()
    x = torch.randn(3, 9, 16, dtype=torch.float64)
    _, state = layer.prefill(x[:, :5], key_padding_mask=key_padding_mask)
    again = layer.prefill(x[:, :5], key_padding_mask=key_padding_mask)[1]
    return layer, state, x[:, 5:], go_on(layer.step, again, x[:, 5:])


@WALKERS
def test_a_copy_goes_on_as_the_original_does(walker: Case) -> None:
    layer, state, x, want = begun(walker)
    twin = copy.deepcopy(layer)
    for way, copied in COPIES.items():
        for module in (layer, twin):
            other = copied(state)
            assert (other.length, other.batch, other.size, other.nbytes) == (5, 3, state.size, state.nbytes), way
            torch.testing.assert_close(go_on(module.step, other, x), want, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(go_on(layer.step, state, x), want, atol=1e-12, rtol=1e-12)  # no copy has changed it


@WALKERS
@pytest.mark.parametrize("mask", [None, MASK], ids=["equal lengths", "many lengths"])
def test_samples_of_a_state_are_chosen_by_their_numbers(walker: Case, mask: Tensor | None) -> None:
    layer, state, x, want = begun(walker, mask)
    for chosen in ([2, 0, 0, 1, 2], [1], [0, 2], [True, False, True], [False, True, False]):
        rows = torch.tensor(chosen)
        got = go_on(layer.step, state.select(rows), x[rows])
        torch.testing.assert_close(got, want[rows], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(go_on(layer.step, state, x), want, atol=1e-12, rtol=1e-12)


@WALKERS
def test_inference_mode_may_begin_or_end_between_two_steps(walker: Case) -> None:
    layer, state, x, want = begun(walker)
    with torch.inference_mode():
        first, inner = layer.step(x[:, 0], state.clone())
    second, outer = layer.step(x[:, 1], inner)
    with torch.inference_mode():
        third, inner = layer.step(x[:, 2], outer)
    fourth, _ = layer.step(x[:, 3], inner)
    torch.testing.assert_close(torch.stack([first, second, third, fourth], 1), want, atol=1e-12, rtol=1e-12)


def test_a_prompt_in_inference_mode_and_steps_outside_it() -> None:
    for walker in ONCE[::5]:
        encoder = encoder_of(walker)
        tokens = torch.randint(9, (2, 9))
        with torch.inference_mode():
            _, state = encoder.prefill(tokens[:, :5])
        torch.testing.assert_close(go_on(encoder.step, state, tokens[:, 5:]), encoder(tokens)[:, 5:])


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("mask", [None, MASK], ids=["equal lengths", "many lengths"])
def test_a_copied_state_belongs_to_a_model_that_is_built_again(way: str, mask: Tensor | None) -> None:
    case = Case("local", (("window", 3),), causal=True)
    encoder, tokens = encoder_of(case), torch.randint(9, (3, 8))
    _, state = encoder.prefill(tokens[:, :5], key_padding_mask=mask)
    other = encoder_of(case)
    other.load_state_dict(encoder.state_dict())
    kept = COPIES[way](state)
    assert kept.lengths.tolist() == state.lengths.tolist()
    assert "got one of another model or layer" in refused(other.step, tokens[:, 5], state)
    got = go_on(other.step, kept, tokens[:, 5:])
    torch.testing.assert_close(got, go_on(encoder.step, state, tokens[:, 5:]), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("other", [{"attn": "linear"}, {"max_len": 5}, {"d_model": 8}, {"n_heads": 4}], ids=str)
@pytest.mark.parametrize("kind", ["sublayer", "encoder"])
def test_a_copied_state_of_another_kind_is_refused(kind: str, other: dict[str, Any], way: str) -> None:
    module, sample = make(kind)
    _, state = module.step(*sample())
    kept = COPIES[way](state)
    stranger, sample_of_stranger = make(kind, **other)
    said = refused(stranger.step, *sample_of_stranger(width=other.get("d_model", 16)), kept)
    assert "got one of another model or layer (" in said
    assert "full (d_model=16, n_heads=2, max_len=4, rotary=False, kernel='auto')" in said
    assert module.step(*sample(), kept)[1].length == 2  # what was refused has not used it up


def test_a_copied_state_of_another_number_of_layers_is_refused() -> None:
    case, token = Case("full", causal=True), torch.tensor([1, 2])
    _, state = encoder_of(case).step(token)
    assert "got one of another model or layer" in refused(encoder_of(case, n_layers=1).step, token, state.clone())


@KINDS
def test_a_state_that_is_used_up_is_not_copied(kind: str) -> None:
    module, sample = make(kind)
    _, state = module.step(*sample())
    module.step(*sample(), state)
    for call in (state.clone, lambda: state.to("cpu"), lambda: state.select(torch.tensor([0]))):
        assert "an earlier step consumed the state" in refused(call)
    for way in ("deepcopy", "pickle", "save"):
        assert "an earlier step consumed the state" in refused(module.step, *sample(), COPIES[way](state))


@KINDS
def test_a_choice_of_samples_says_what_it_takes(kind: str) -> None:
    module, sample = make(kind)
    _, state = module.step(*sample())
    expected = "expected (K,) integers from 0 to 1, or a bool mask of shape (2,), got "
    for indices, got in [
        (torch.tensor([0, 2]), "0 to 2"),
        (torch.tensor([-1, 0]), "-1 to 0"),
        (torch.tensor([0.0, 1.0]), "shape (2,) of torch.float32"),
        (torch.tensor([[0], [1]]), "shape (2, 1) of torch.int64"),
        (torch.tensor([True]), "shape (1,) of torch.bool"),
        (torch.tensor([0, 1], dtype=torch.uint8), "shape (2,) of torch.uint8"),
    ]:
        assert refused(state.select, indices) == expected + got
    assert state.select(torch.tensor([1, 1, 0])).shape[0] == 3
    assert state.select(torch.tensor([], dtype=torch.long)).batch == 0
