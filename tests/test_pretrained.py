"""Encoders on disk: the same function after loading, and one line on what does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch import nn

from zoo import Encoder, describe
from zoo.attention.block_sparse import BlockSparseConfig
from zoo.attention.linformer import LinformerConfig
from zoo.pretrained import copy_shared

SIZES: dict[str, Any] = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_len": 32, "vocab_size": 9, "dropout": 0.0}
IDS = torch.arange(2 * 20).reshape(2, 20) % 9


def make(attn: object = "full", **options: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(attn, **(SIZES | options)).eval()


def saved(folder: Path, attn: object = "full", **options: Any) -> Encoder:
    encoder = make(attn, **options)
    encoder.save_pretrained(folder)
    return encoder


def test_a_loaded_encoder_is_the_same_function(name: str, tmp_path: Path) -> None:
    encoder = make(name)
    encoder.redraw()
    encoder.save_pretrained(tmp_path)
    again = Encoder.from_pretrained(tmp_path)
    assert not again.training
    torch.testing.assert_close(again(IDS), encoder(IDS), rtol=0, atol=0)
    assert again.settings is not None
    assert type(again.settings["attn"]) is describe(name).config
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()
    torch.testing.assert_close(Encoder.from_pretrained(tmp_path / "again")(IDS), encoder(IDS), rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"causal": True, "norm": "post", "activation": "swiglu", "d_ff": 24, "conv_width": 3, "positions": "learned"},
        {"vocab_size": None, "n_features": 5, "norm_type": "rms", "qk_norm": True, "positions": "rotary"},
        {"reversible": True, "ff_chunk": 4},
    ],
)
def test_all_arguments_are_kept(options: dict[str, Any], tmp_path: Path) -> None:
    encoder = saved(tmp_path, **options)
    again = Encoder.from_pretrained(tmp_path)
    x = IDS if options.get("vocab_size", 9) else torch.randn(2, 20, 5)
    torch.testing.assert_close(again(x), encoder(x), rtol=0, atol=0)
    assert again.settings is not None
    assert {name: again.settings[name] for name in options} == options


def test_options_of_the_attention_are_kept(tmp_path: Path) -> None:
    layout = torch.eye(8, dtype=torch.bool) | torch.eye(8, dtype=torch.bool).roll(1, 0)
    for attn in (LinformerConfig(rank=4), BlockSparseConfig(block_size=4, layout=layout)):
        encoder = saved(tmp_path, attn)
        torch.testing.assert_close(Encoder.from_pretrained(tmp_path)(IDS), encoder(IDS), rtol=0, atol=0)


def test_a_fresh_process_gives_the_same_digits(tmp_path: Path) -> None:
    encoder = saved(tmp_path, "performer")
    torch.save(encoder(IDS), tmp_path / "expected.pt")
    code = (
        "import sys, torch; from zoo import Encoder; folder = sys.argv[1]; y = Encoder.from_pretrained(folder)"
        "(torch.arange(40).reshape(2, 20) % 9); print(torch.equal(y, torch.load(folder + '/expected.pt')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_nothing_on_disk_is_a_pickle(tmp_path: Path) -> None:
    saved(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert "attention-zoo" in (tmp_path / "README.md").read_text()


def test_another_attention_takes_the_weights_that_both_have(tmp_path: Path) -> None:
    encoder = saved(tmp_path)
    same = Encoder.from_pretrained(tmp_path, attn="naive")
    torch.testing.assert_close(same(IDS), encoder(IDS), msg="full and naive compute the same")
    other = Encoder.from_pretrained(tmp_path, attn=LinformerConfig(rank=4))
    theirs = dict(encoder.named_parameters())
    own = [name for name, p in other.named_parameters() if name not in theirs]
    assert own
    assert all("attention.mixer.attention" in name for name in own)
    assert all(torch.equal(p, theirs[name]) for name, p in other.named_parameters() if name in theirs)
    assert copy_shared(other, encoder.state_dict()) == own
    mixer = Encoder.from_pretrained(tmp_path, attn="hyena")
    assert torch.equal(mixer.layers[0].feed_forward.out.weight, encoder.layers[0].feed_forward.out.weight)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit: embedding\.weight has shape \(9, 16\), expected \(11, 16\)$"):
        Encoder.from_pretrained(tmp_path, vocab_size=11)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    moved = {name.replace("norm.", "final."): x for name, x in tensors.items() if name.startswith("norm.")}
    rest = {name: x for name, x in tensors.items() if not name.startswith("norm.")}
    save_file(rest | moved, file)
    with pytest.raises(ValueError, match=r"lacks norm\.\S+, norm\.\S+; it has final\.\S+, final\.\S+, which the model"):
        Encoder.from_pretrained(tmp_path)


def test_a_damaged_missing_or_newer_file_is_one_line(tmp_path: Path) -> None:
    encoder = saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(ValueError, match=r"expected a config\.json of format 1, got 99"):
        Encoder.from_pretrained(tmp_path)
    for attn, said in (
        ({"name": "os:path", "options": {}}, "expected the name of a registered attention, got 'os:path'"),
        ({"name": "fulll", "options": {}}, "unknown attention 'fulll'"),
        ({"name": "linformer", "options": {"ranks": 3}}, "linformer has no option 'ranks'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"attn": attn}))
        with pytest.raises(ValueError, match=said):
            Encoder.from_pretrained(tmp_path)
    encoder.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        Encoder.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors: expected a folder that save_pretrained wrote"):
        Encoder.from_pretrained(tmp_path)


def test_an_encoder_from_torch_says_that_it_cannot_be_saved(tmp_path: Path) -> None:
    theirs = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, batch_first=True), 1, enable_nested_tensor=False)
    with pytest.raises(ValueError, match="an encoder made by from_torch or from_vit cannot be saved"):
        Encoder.from_torch(theirs).save_pretrained(tmp_path)


def test_the_hub_gets_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[set[str]] = []

    def upload_folder(_api: HfApi, *, folder_path: Path, **_: object) -> str:
        pushed.append({path.name for path in Path(folder_path).iterdir()})
        return "url"

    class Repo:
        repo_id = "me/mine"

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: Repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert make().push_to_hub("me/mine") == "url"
    assert pushed == [{"config.json", "model.safetensors", "README.md"}]
