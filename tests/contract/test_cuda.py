"""What a CUDA device must give: every backend's outputs, gradients and steps as on a CPU, and runs that end well."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compare.runs.measure import count_flops, peak_memory
from tests.conftest import Case, cases
from tests.contract.test_numerics import FORMS, assert_large_activations_stay_finite
from tests.test_compare import TINY, compare, records_of
from zoo import Encoder, MultiHeadAttention, describe

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

STEPPED = list({case.name: case for case in reversed(cases()) if case.causal and describe(case.name).steps}.values())


def trained(module: nn.Module, x: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """The output and all gradients, by name, on the CPU."""
    x = x.clone().requires_grad_()
    y = module(x, key_padding_mask=mask)
    (y * torch.arange(y.shape[-1], device=y.device)).sum().backward()
    grads = {name: p.grad for name, p in module.named_parameters()}
    return {name: got.detach().cpu() for name, got in {"output": y, "input": x.grad, **grads}.items()}


def assert_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Equal up to ``tolerance`` of the largest number of each tensor."""
    for name, want in theirs.items():
        bound = tolerance * max(1.0, want.abs().max().item())
        torch.testing.assert_close(ours[name], want, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)], ids=["64", "32"])
def test_it_gives_what_the_cpu_gives(case: Case, dtype: torch.dtype, tolerance: float, padded: bool) -> None:
    ours = case.sublayer().to(dtype)
    x = torch.randn(3, 96, 16, dtype=dtype)
    mask = torch.rand(3, 96) < torch.tensor([[0.0], [0.4], [1.0]]) if padded else None
    theirs = copy.deepcopy(ours).cuda()
    got = trained(theirs, x.cuda(), None if mask is None else mask.cuda())
    assert_alike(got, trained(ours, x, mask), tolerance)


@pytest.mark.parametrize("causal", [False, True])
def test_long_inputs_give_what_the_cpu_gives(name: str, causal: bool) -> None:
    """Several of the longer chunks and tiles that are used off the CPU."""
    if causal and not describe(name).traits.causal:
        pytest.skip("no causal form")
    torch.manual_seed(0)
    ours = MultiHeadAttention(name, d_model=32, n_heads=2, max_len=1500, causal=causal).double().eval()
    x, mask = torch.randn(2, 1500, 32, dtype=torch.float64), torch.arange(1500) >= torch.tensor([[1500], [1100]])
    theirs = copy.deepcopy(ours).cuda()
    assert_alike(trained(theirs, x.cuda(), mask.cuda()), trained(ours, x, mask), 1e-8)


@pytest.mark.parametrize(("variant", "causal"), FORMS, ids=[name + "-causal" * causal for name, causal in FORMS])
def test_weights_come_to_it_by_any_way_and_an_empty_batch_is_none_there(variant: str, causal: bool) -> None:
    options = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_len": 96, "vocab_size": 9, "causal": causal}
    torch.manual_seed(0)
    source = Encoder(variant, **options).eval()
    tokens, mask = torch.randint(9, (2, 90)), torch.arange(90) < torch.tensor([[0], [30]])
    loaded, assigned = (Encoder(variant, device="meta", **options).eval() for _ in range(2))
    loaded.to_empty(device="cuda").load_state_dict(source.state_dict())
    assigned.load_state_dict({key: value.cuda() for key, value in source.state_dict().items()}, assign=True)
    for target in (loaded, assigned, copy.deepcopy(source).cuda()):
        y = target(tokens.cuda(), key_padding_mask=mask.cuda()).cpu()
        torch.testing.assert_close(y, source(tokens, key_padding_mask=mask), atol=2e-3, rtol=2e-3)
    y = loaded.train()(tokens[:0].cuda(), key_padding_mask=mask[:0].cuda())
    assert y.shape == (0, 90, 16)
    y.sum().backward()
    assert all((p.grad == 0).all() for p in loaded.parameters())


@pytest.mark.parametrize("walker", STEPPED, ids=str)
def test_step_by_step_equals_the_parallel_form(walker: Case) -> None:
    layer = walker.sublayer().cuda()
    x, state, outputs = torch.randn(2, 96, 16, device="cuda"), None, []
    with torch.no_grad():
        for position in x.unbind(1):
            y, state = layer.step(position, state)
            outputs.append(y)
        for length in (1, 7, 64, 96):
            whole = layer(x[:, :length])
            torch.testing.assert_close(torch.stack(outputs[:length], 1), whole, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("walker", STEPPED, ids=str)
def test_a_prefill_there_goes_on_there_and_on_the_cpu(walker: Case, padded: bool) -> None:
    ours = walker.sublayer().double()
    theirs = copy.deepcopy(ours).cuda()
    x = torch.randn(3, 96, 16, dtype=torch.float64)
    mask = torch.arange(90) < torch.tensor([[0], [5], [90]]) if padded else None
    y, state = ours.prefill(x[:, :90], key_padding_mask=mask)
    got, there = theirs.prefill(x[:, :90].cuda(), key_padding_mask=None if mask is None else mask.cuda())
    torch.testing.assert_close(got.cpu(), y, atol=1e-8, rtol=1e-8)
    rows, here = torch.tensor([2, 0, 0, 1]), there.to("cpu")
    state, there, here = state.select(rows), there.select(rows.cuda()), here.select(rows)
    for position in x[rows, 90:].unbind(1):
        y, state = ours.step(position, state)
        got, there = theirs.step(position.cuda(), there)
        moved, here = ours.step(position, here)
        torch.testing.assert_close(got.cpu(), y, atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(moved, y, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("variant", "causal"), FORMS, ids=[name + "-causal" * causal for name, causal in FORMS])
def test_long_inputs_with_large_activations_stay_finite(variant: str, causal: bool, dtype: torch.dtype) -> None:
    assert_large_activations_stay_finite(variant, causal, dtype, "cuda")


def test_layers_run_again_in_backward_see_the_same_random_numbers(name: str) -> None:
    """With gradient checkpointing; reversible layers have a test of their own."""
    x = torch.randn(3, 48, 16, device="cuda")
    mask = torch.arange(48, device="cuda") >= torch.tensor([[48], [30], [0]], device="cuda")
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = Encoder(name, d_model=16, n_heads=2, n_layers=2, max_len=48, dropout=0.2, checkpointing=checkpointing)
        results.append(trained(encoder.cuda(), x, mask))
    assert_alike(*results, 1e-4)


def test_peak_memory_of_a_step_is_the_allocators() -> None:
    assert peak_memory(lambda: torch.ones(64, 2**20, device="cuda"), torch.device("cuda")) == 2**28


def test_flops_are_counted_as_on_the_cpu(name: str) -> None:
    def counted(device: str) -> int:
        torch.manual_seed(0)
        layer = MultiHeadAttention(name, d_model=16, n_heads=2, max_len=48).to(device)
        x = torch.randn(2, 48, 16, device=device, requires_grad=True)
        return count_flops(lambda: layer(x).sum().backward())

    assert counted("cuda") == pytest.approx(counted("cpu"), rel=0.5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_comparison_runs(dtype: str, tmp_path: Path) -> None:
    words = [*TINY, "--variants", "full,xformers,linear,reformer,mamba2", "--device", "cuda", "--dtype", dtype]
    done = compare(*words, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    records = records_of(tmp_path)
    assert {record["variant"] for record in records} == {"full", "xformers", "linear", "reformer", "mamba2", "none"}
    for record in records:
        assert record["status"] == "ok", record["reason"]
        assert record["peak_memory_bytes"] > 0
        assert record["train_memory_bytes"] >= record["peak_memory_bytes"] + 12 * record["params"]


@pytest.mark.parametrize("decode", [[], ["--decode"]], ids=["encode", "decode"])
def test_cost_is_measured(decode: list[str], tmp_path: Path) -> None:
    words = ["cost", *decode, "--variants", "full,local,retnet", "--seq-len", "64,128", "--device", "cuda"]
    done = compare(*words, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [record["status"] for record in records_of(tmp_path)] == ["ok"] * 8


def test_a_memory_limit_gives_an_oom_row(tmp_path: Path) -> None:
    words = ["cost", "--variants", "full,naive", "--no-control", "--seq-len", "8192", "--memory-limit", "2GB"]
    done = compare(*words, "--longest", "8192", "--device", "cuda", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    statuses = {record["variant"]: record["status"] for record in records_of(tmp_path)}
    assert statuses == {"full": "ok", "naive": "oom"}
