"""Backends in the models of transformers: real classes, built from small configs."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.*does not hold the weight of each pair")

import zoo.hf  # noqa: E402
from zoo import available, describe  # noqa: E402
from zoo.attention.local import LocalConfig  # noqa: E402
from zoo.contract import Attention, Dims, UnsupportedError  # noqa: E402
from zoo.hf.masks import dense, is_ours, make_mask  # noqa: E402
from zoo.registry import build  # noqa: E402

N = 24
TEXT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LONG = {"max_position_embeddings": 256}
PICTURE = {key: value for key, value in TEXT.items() if key != "vocab_size"} | {"image_size": 16, "patch_size": 4}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", TEXT | LONG),
    "roberta": ("Roberta", TEXT | LONG | {"pad_token_id": 0}),
    "xlm-roberta": ("XLMRoberta", TEXT | LONG | {"pad_token_id": 0}),
    "camembert": ("Camembert", TEXT | LONG | {"pad_token_id": 0}),
    "roberta-prelayernorm": ("RobertaPreLayerNorm", TEXT | LONG | {"pad_token_id": 0}),
    "electra": ("Electra", TEXT | LONG | {"embedding_size": 32}),
    "ernie": ("Ernie", TEXT | LONG),
    "albert": ("Albert", TEXT | LONG | {"embedding_size": 16}),
    "distilbert": ("DistilBert", {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48} | LONG),
    "modernbert": (
        "ModernBert",
        TEXT | LONG | {"pad_token_id": 0, "local_attention": 8, "global_attn_every_n_layers": 2},
    ),
    "vit": ("ViT", PICTURE),
    "deit": ("DeiT", PICTURE),
    "dinov2": ("Dinov2", PICTURE),
}
LLAMA = TEXT | LONG | {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
REGISTERED = zoo.hf.register()


def made(name: str, attention: str = "sdpa", **more: Any) -> Any:
    """A model of float64 without dropout, in evaluation mode; the same weights for the same name."""
    family, settings = ENCODERS.get(name, (name, {}))
    config = getattr(transformers, f"{family}Config")(**settings, **more)
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
        if hasattr(config, field):
            setattr(config, field, 0.0)
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config, attn_implementation=attention).double().eval()


def inputs_of(model: Any, side: str = "right") -> dict[str, Tensor]:
    """Tokens of two samples, the second shorter and padded on a side; or two pictures."""
    torch.manual_seed(1)
    if hasattr(model.config, "image_size"):
        return {"pixel_values": torch.randn(2, 3, 16, 16, dtype=torch.float64)}
    ids, mask = torch.randint(3, 50, (2, N)), torch.ones(2, N, dtype=torch.long)
    hidden = slice(N - 9, None) if side == "right" else slice(0, 9)
    mask[1, hidden] = 0
    return {"input_ids": ids, "attention_mask": mask}


def outputs_and_gradients(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The last hidden states, and the gradients of the old parameters from real positions."""
    model.zero_grad()
    y = model(**inputs).last_hidden_state
    real = inputs.get("attention_mask", torch.ones(y.shape[:2]))
    torch.manual_seed(2)
    (y * torch.randn_like(y) * real[..., None]).sum().backward()
    old = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and zoo.hf.PART not in name}
    return y.detach(), old


def assert_same(ours: Any, theirs: Any, inputs: dict[str, Tensor]) -> None:
    (y, grads), (wanted, wanted_grads) = (outputs_and_gradients(model, inputs) for model in (ours, theirs))
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)
    assert grads.keys() == wanted_grads.keys()
    for name, grad in wanted_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "vit", "Llama", "GPT2"])
def test_full_is_the_original_with_padding(kind: str, side: str) -> None:
    more = LLAMA if kind == "Llama" else TEXT | {"n_positions": 64, "pad_token_id": 0} if kind == "GPT2" else {}
    ours, theirs = (made(kind, attention, **more) for attention in ("zoo_full", "sdpa"))
    inputs = inputs_of(theirs, side)
    if kind in ("Llama", "GPT2"):  # queries at padding that see only padding are undefined
        real = inputs["attention_mask"].bool()
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        torch.testing.assert_close(
            ours(**inputs).last_hidden_state[real], theirs(**inputs).last_hidden_state[real], rtol=1e-5, atol=1e-5
        )
        assert ours(**inputs).last_hidden_state.isfinite().all()
    else:
        assert_same(ours, theirs, inputs)


def test_a_window_over_all_is_the_original_and_a_short_one_is_not() -> None:
    zoo.hf.register(LocalConfig(window=64), name="zoo_wide")
    zoo.hf.register(LocalConfig(window=2), name="zoo_narrow")
    theirs = made("bert")
    inputs = inputs_of(theirs)
    assert_same(made("bert", "zoo_wide"), theirs, inputs)
    with torch.no_grad():
        narrow = made("bert", "zoo_narrow")(**inputs).last_hidden_state
        assert (narrow - theirs(**inputs).last_hidden_state).abs().max() > 1e-3


def test_what_is_registered() -> None:
    assert {"zoo_full", "zoo_local", "zoo_bigbird", "zoo_performer", "zoo_cosformer"} <= set(REGISTERED)
    named = {name.removeprefix("zoo_") for name in REGISTERED}
    for name in set(available()) - named:
        with pytest.raises(UnsupportedError, match=f"^{name} cannot be registered: "):
            zoo.hf.register(name)
    with pytest.raises(ValueError, match="expected attn too"):
        zoo.hf.register(name="mine")


@pytest.mark.parametrize("kind", REGISTERED)
def test_no_output_reads_padding(kind: str) -> None:
    model = made("bert", kind)
    inputs = inputs_of(model)
    real = inputs["attention_mask"].bool()
    changed = inputs | {"input_ids": inputs["input_ids"].masked_fill(~real, 7)}
    with torch.no_grad():
        y, again = (model(**x).last_hidden_state for x in (inputs, changed))
    assert y.isfinite().all()
    torch.testing.assert_close(again[real], y[real], rtol=1e-5, atol=1e-5)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(**inputs).last_hidden_state[real], y[real], msg="random parts are the layer's")


CAUSAL_NAMES = [kind for kind in REGISTERED if describe(kind.removeprefix("zoo_")).traits.causal]


@pytest.mark.parametrize("kind", CAUSAL_NAMES)
def test_a_decoder_writes_the_same_with_a_cache(kind: str) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).double().eval()
    model.set_attn_implementation(kind)
    ids, mask = torch.randint(3, 50, (2, 150)), torch.ones(2, 150, dtype=torch.long)
    mask[1, :60] = 0
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "output_logits": True}

    def write(*, cached: bool) -> Any:
        return model.generate(ids, **options, use_cache=cached, return_dict_in_generate=True)

    if describe(kind.removeprefix("zoo_")).traits.reads_queries:
        with pytest.raises(ValueError, match="use use_cache=False"):
            write(cached=True)
        return
    fast, slow = write(cached=True), write(cached=False)
    assert torch.equal(fast.sequences, slow.sequences)
    if kind == "zoo_topk":  # which of two keys counts can hang on the last bit
        return
    for with_cache, without in zip(fast.logits, slow.logits, strict=True):
        torch.testing.assert_close(with_cache, without, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("attn", [n for n in available() if describe(n).traits.causal])
def test_only_those_that_say_so_read_earlier_queries(attn: str) -> None:
    torch.manual_seed(0)
    backend = build(attn, Dims(d_model=32, n_heads=4, max_len=300, causal=True))
    if not isinstance(backend, Attention) or backend.traits.shared_qk:
        pytest.skip("no queries of another model")
    q, k, v = torch.randn(3, 1, 4, 300, 8, dtype=torch.float64)
    backend.double().eval()
    alone = torch.zeros_like(q)
    alone[:, :, -1] = q[:, :, -1]
    same = torch.allclose(backend(alone, k, v)[:, :, -1], backend(q, k, v)[:, :, -1], rtol=1e-8, atol=1e-8)
    assert same != backend.traits.reads_queries


def test_full_writes_what_the_original_writes() -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, attn_implementation="eager")).eval()
    inputs = inputs_of(model, "left")
    wanted = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    model.set_attn_implementation("zoo_full")
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False), wanted)
    with pytest.raises(ValueError, match="use a DynamicCache"):
        model.generate(**inputs, max_new_tokens=8, do_sample=False, cache_implementation="static")


def test_masks_that_cannot_be_honoured_are_refused() -> None:
    mistral = transformers.MistralConfig(**LLAMA, sliding_window=8, attn_implementation="zoo_full")
    inputs = inputs_of(mistral_model := transformers.MistralModel(mistral).eval())
    with pytest.raises(ValueError, match="with a window of 8: no attention of the zoo"):
        mistral_model(**inputs)
    wide = transformers.MistralConfig(**LLAMA, sliding_window=64, attn_implementation="zoo_full")
    torch.manual_seed(0)
    ours = transformers.MistralModel(wide).eval()
    theirs = copy.deepcopy(ours)
    theirs.set_attn_implementation("sdpa")
    torch.testing.assert_close(
        ours(**inputs).last_hidden_state[0], theirs(**inputs).last_hidden_state[0], rtol=1e-5, atol=1e-5
    )
    bert = made("bert", "zoo_full")
    own = torch.zeros(2, 1, N, N)
    with pytest.raises(ValueError, match="BertSelfAttention got a mask of shape"):
        bert(input_ids=inputs["input_ids"], attention_mask=own)
    with pytest.raises(ValueError, match=rf"expected one of \(batch, tokens\), .* got \(2, {N}, {N}\)"):
        bert(input_ids=inputs["input_ids"], attention_mask=torch.ones(2, N, N).tril())
    llama = made("Llama", "zoo_full", **LLAMA)
    packed = torch.arange(N).remainder(12).expand(2, -1)
    with pytest.raises(ValueError, match="packed sequences"):
        llama(input_ids=inputs["input_ids"], position_ids=packed, use_cache=False)
    both_ways = made("Llama", next(x for x in REGISTERED if x not in CAUSAL_NAMES), **LLAMA)
    with pytest.raises(UnsupportedError, match="has no causal form"):
        both_ways(**inputs)


def test_arguments_that_change_the_weights_are_refused() -> None:
    module = made("bert").encoder.layer[0].attention.self
    q = torch.randn(1, 4, 5, 8)
    function = transformers.AttentionInterface()["zoo_full"]
    for argument in ({"softcap": 30.0}, {"position_bias": q}, {"sliding_window": 3}):
        with pytest.raises(ValueError, match="asks for"):
            function(module, q, q, q, None, **argument)
    with pytest.raises(ValueError, match="expected values as wide as queries"):
        function(module, q, q, torch.randn(1, 4, 5, 6), None)
    with pytest.raises(ValueError, match="expected self-attention, got 5 queries of 9 keys"):
        function(module, q, *torch.randn(2, 1, 4, 9, 8), None)
    scaled, _ = function(module, q, q, q, None, scaling=0.7)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, q, q, scale=0.7).transpose(1, 2)
    torch.testing.assert_close(scaled, wanted)


def test_a_causal_mask_is_the_dense_one_for_torch() -> None:
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    padding = torch.ones(2, 9, dtype=torch.long)
    padding[1, :3] = 0
    arguments = {"batch_size": 2, "q_length": 4, "kv_length": 9, "q_offset": 5, "mask_function": causal_mask_function}
    mask = make_mask(**arguments, attention_mask=padding)
    assert is_ours(mask)
    wanted = sdpa_mask(**arguments, attention_mask=padding.bool(), allow_is_causal_skip=False)
    assert torch.equal(dense(mask, 4, 9), wanted)
    unpadded = make_mask(**arguments, attention_mask=torch.ones(2, 9, dtype=torch.long))
    assert torch.equal(dense(unpadded, 4, 9)[1], wanted[0])
    assert make_mask(**arguments, attention_mask=mask) is mask, "passed on by a model to a part of it"


# swap


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_swapped_model_with_full_is_the_original(kind: str) -> None:
    theirs = made(kind, "sdpa")
    ours = copy.deepcopy(theirs)
    before = {key: x.clone() for key, x in ours.state_dict().items()}
    done = zoo.hf.swap(ours, "full")
    assert done.layers
    assert done.new == []
    assert before.keys() == ours.state_dict().keys()
    assert_same(ours, theirs, inputs_of(theirs))
    if kind == "modernbert":
        assert len(done.left) == 1, "the layer with a window"


@pytest.mark.parametrize("attn", ["linformer", "hedgehog", "routing", "nystromformer", "performer"])
def test_a_swapped_model_has_new_weights_by_name_and_keeps_the_old(attn: str) -> None:
    model = made("bert")
    before = {key: x.clone() for key, x in model.state_dict().items()}
    done = zoo.hf.swap(model, attn)
    after = model.state_dict()
    assert set(after) == set(before) | set(done.new)
    assert set(done.new).isdisjoint(before)
    for key, x in before.items():
        assert torch.equal(after[key], x)
    again = made("bert")
    zoo.hf.swap(again, attn)
    again.load_state_dict(after)
    inputs = inputs_of(model)
    with torch.no_grad():
        y, loaded = (each(**inputs).last_hidden_state for each in (model, again))
    assert torch.equal(y, loaded)
    real = inputs["attention_mask"].bool()
    changed = inputs | {"input_ids": inputs["input_ids"].masked_fill(~real, 7)}
    with torch.no_grad():
        torch.testing.assert_close(model(**changed).last_hidden_state[real], y[real], rtol=1e-5, atol=1e-5)


def test_a_decoder_with_cross_attention_is_swapped_but_for_that() -> None:
    config = transformers.BertConfig(**TEXT, **LONG, is_decoder=True, add_cross_attention=True)
    config.attention_probs_dropout_prob = config.hidden_dropout_prob = 0.0
    torch.manual_seed(0)
    theirs = transformers.BertModel(config).eval()
    ours = copy.deepcopy(theirs)
    done = zoo.hf.swap(ours, "full")
    assert len(done.left) == 2
    inputs = inputs_of(theirs, "right") | {"encoder_hidden_states": torch.randn(2, 7, 32)}
    inputs["encoder_attention_mask"] = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        ours(**inputs).last_hidden_state[real], theirs(**inputs).last_hidden_state[real], rtol=1e-5, atol=1e-5
    )
    with pytest.raises(UnsupportedError, match="linformer has no causal form"):
        zoo.hf.swap(theirs, "linformer")
    assert not any(zoo.hf.PART in name for name, _ in theirs.named_modules()), "nothing was changed"


def test_what_cannot_be_swapped_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"BertSelfAttention.*, got Linear"):
        zoo.hf.swap(nn.Linear(2, 2), "linear")
    with pytest.raises(UnsupportedError, match="hyena cannot be put into a model: it mixes whole inputs"):
        zoo.hf.swap(made("bert"), "hyena")
    with pytest.raises(UnsupportedError, match="reformer cannot be put into a model: its keys are its queries"):
        zoo.hf.swap(made("bert"), "reformer")
    with pytest.raises(ValueError, match="unknown attention 'linfomer'"):
        zoo.hf.swap(made("bert"), "linfomer")


def test_lost_dropout_is_told(tmp_path: Path) -> None:
    config = transformers.BertConfig(**TEXT, **LONG, hidden_dropout_prob=0.0)
    with pytest.warns(UserWarning, match="linear does not hold the weight of each pair"):
        zoo.hf.swap(transformers.BertModel(config), "linear")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zoo.hf.swap(model := transformers.BertModel(config), "full")
    inputs = inputs_of(model)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(**inputs).last_hidden_state, model.eval()(**inputs).last_hidden_state)


@pytest.mark.parametrize("attn", ["linformer", "local"])
def test_the_trainer_of_transformers_trains_it(attn: str, tmp_path: Path) -> None:
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT, **LONG, num_labels=2))
    done = zoo.hf.swap(model, attn)
    torch.manual_seed(0)
    samples = [{"input_ids": torch.full((N,), 3 + i % 2), "labels": i % 2} for i in range(40)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=10, per_device_train_batch_size=8, learning_rate=5e-3, report_to=[],
        use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    before = {name: model.state_dict()[name].clone() for name in done.new}
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=samples)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    for name, x in before.items():
        assert not torch.equal(model.state_dict()[name], x), f"{name} was trained"


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("attention", ["zoo_full", "zoo_performer", "swap"])
def test_checkpointing_changes_no_gradient(attention: str, reentrant: bool) -> None:
    model = made("bert", "sdpa" if attention == "swap" else attention)
    if attention == "swap":
        zoo.hf.swap(model, "hedgehog")
    inputs = inputs_of(model)
    _, wanted = outputs_and_gradients(model.train(), inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    _, grads = outputs_and_gradients(model, inputs)
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, msg=name)


def test_seeds_of_the_user_stay() -> None:
    zoo.hf.register("performer")
    model = made("bert", "zoo_performer")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.inference_mode():
        model(**inputs_of(model))
        torch.set_rng_state(before)
    other = made("bert", "zoo_performer")
    torch.set_rng_state(before)
    module = other.encoder.layer[0].attention.self
    q = torch.randn(1, 4, 5, 8, dtype=torch.float64)
    after = torch.get_rng_state()
    transformers.AttentionInterface()["zoo_performer"](module, q, q, q, None)
    assert torch.equal(torch.get_rng_state(), after)
    outputs_and_gradients(model.train(), inputs_of(model))  # built in inference mode, then trained


def test_a_pickled_model_works_again(tmp_path: Path) -> None:
    model = made("bert")
    zoo.hf.swap(model, "linformer")
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    inputs = inputs_of(model)
    assert torch.equal(again(**inputs).last_hidden_state, model(**inputs).last_hidden_state)


@pytest.mark.parametrize("attention", ["zoo_full", "zoo_local", "zoo_cosformer"])
def test_half_precision_is_finite(attention: str) -> None:
    model = made("bert", attention).bfloat16()
    assert model(**inputs_of(model)).last_hidden_state.isfinite().all()


def test_a_model_that_never_asks_the_interface_is_named_in_the_docs() -> None:
    ids = torch.randint(3, 50, (2, 9))
    results = []
    for attention in ("eager", "zoo_local"):
        torch.manual_seed(0)
        config = transformers.DebertaV2Config(
            vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
        )
        model = transformers.AutoModel.from_config(config, attn_implementation=attention).eval()
        results.append(model(input_ids=ids).last_hidden_state)
    assert torch.equal(*results), "docs/library.md says that DeBERTa computes its own attention: it no longer does"


def test_models_that_mix_by_themselves_and_cross_attention_are_refused() -> None:
    bloom = transformers.BloomModel(
        transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=4, attn_implementation="zoo_full")
    )
    with pytest.raises(ValueError, match="BloomModel mixes values by itself"):
        bloom(input_ids=torch.ones(1, 5, dtype=torch.long))
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 50}
    bart = transformers.BartModel(transformers.BartConfig(**sizes, **heads, attn_implementation="zoo_local"))
    ids = torch.randint(3, 50, (2, 9))
    with pytest.raises(ValueError, match="BartAttention attends to another sequence"):
        bart(input_ids=ids, decoder_input_ids=ids)


def test_an_input_beyond_the_longest_is_refused() -> None:
    model = made("bert")
    zoo.hf.swap(model, "bigbird", max_len=16)
    with pytest.raises(ValueError, match=r"expected 1 to 16 positions \(max_len\), got 24"):
        model(**inputs_of(model))


def test_a_model_whose_attention_cannot_be_set_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("bert")
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda _: False))
    with pytest.raises(UnsupportedError, match="transformers cannot set its attention"):
        zoo.hf.swap(model, "linformer")
    assert not any(zoo.hf.PART in name for name in model.state_dict())
    model(**inputs_of(model))


@pytest.mark.parametrize("version", ["5.19.1", "6.0.0", "4.57.0"])
def test_another_version_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.hf.version", lambda _: version)
    with pytest.raises(ImportError, match=f"expected transformers 5.20 or newer, below 6, got {version}"):
        zoo.hf.register()
