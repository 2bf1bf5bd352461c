"""What does not fit is refused by the names that do not, before anything is written."""

import json
import re
import shutil

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from flowmap.cli import main
from tests.published.files import BASE, original, wan


class Ran:
    """Would make a directory, if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


@pytest.fixture
def asked(tmp_path, capsys):
    """Import a checkpoint, which must be refused; what is said."""

    def refused(content, *more, name="net.pt", base=BASE):
        file = tmp_path / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif name.endswith(".safetensors"):
            save_file(content, file)
        elif content is not None:
            torch.save(content, file)
        out = [] if "--out" in more else ["--out", str(tmp_path / "out")]
        assert main(["import", str(file), "--base", str(base), *out, *more]) == 2
        assert not (tmp_path / "out").exists()
        assert not [*tmp_path.glob(".tmp*")]
        said = capsys.readouterr().err
        assert said.startswith("flowmap: ") and "Traceback" not in said
        return said

    return refused


def student(**changed):
    weights = original(wan())
    for name, value in changed.items():
        weights.pop(name.replace("__", "."))
        if value is not None:
            weights[name.replace("__", ".")] = value
    return {"generator_ema": {f"model.{name}": value for name, value in weights.items()}}


def test_missing(asked):
    said = asked(student(blocks__3__self_attn__k__weight=None, head__head__bias=None))
    assert "it has no blocks.3.self_attn.k.weight, head.head.bias" in said
    assert str(BASE) in said


def test_unexpected(asked):
    extra = student()
    extra["generator_ema"] |= {
        "model.img_emb.proj.0.weight": torch.zeros(2),
        "model.blocks.4.modulation": torch.zeros(2),
    }
    assert "it has img_emb.proj.0.weight, blocks.4.modulation, which the network has not" in asked(extra)


def test_shapes(asked):
    said = asked(student(head__modulation=torch.zeros(1, 2, 64)))
    assert "head.modulation is [1, 2, 64]: must be [1, 2, 128]" in said


def test_types(asked):
    weights = student(blocks__0__ffn__0__weight=torch.zeros(512, 128, dtype=torch.float8_e4m3fn))
    assert "blocks.0.ffn.0.weight is torch.float8_e4m3fn: must be one of torch.float32" in asked(weights)


def test_another_size(asked):
    wide = WanTransformer3DModel(**{**wan().config, "num_attention_heads": 2, "ffn_dim": 64})
    said = asked({"generator_ema": original(wide)})
    assert re.search(r"patch_embedding.weight is \[64, 4, 1, 2, 2\]: must be \[128, 4, 1, 2, 2\]", said)
    assert "and 109 more" in said or re.search(r"and \d+ more", said)


def test_more_than_tensors_is_not_run(asked, tmp_path):
    said = asked({**student(), "hook": Ran(tmp_path / "ran")})
    assert "holds more than tensors, posix.mkdir, which only running what it says could make: refused" in said
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("cut", [0, 1, 100, 20000])
def test_damaged(cut, asked, tmp_path):
    torch.save(student(), tmp_path / "whole.pt")
    assert "is damaged, or no checkpoint of " in asked((tmp_path / "whole.pt").read_bytes()[:cut])


def test_damaged_safetensors(asked, tmp_path):
    save_file(original(wan()), tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()[:5000]
    assert "is damaged" in asked(content, "--layout", "self_forcing", name="cut.safetensors")


def test_no_tensors(asked):
    assert "has no tensors, but 'step', 'config.width'" in asked({"step": 3, "config": {"width": 2}})
    assert "has no tensors, but nothing" in asked({"generator_ema": {}})
    assert "holds a list: must be tensors by name" in asked([1, 2])


def test_two_of_one_name(asked):
    weights = student()["generator_ema"]
    twice = weights | {"model._orig_mod.head.head.bias": weights["model.head.head.bias"]}
    assert "two of its tensors are called head.head.bias" in asked({"generator_ema": twice})


def test_nothing_says_how_it_is_meant(asked):
    said = asked(original(wan()))
    assert "do not say how they are meant: say it with --layout NAME, one of" in said
    assert "krea_realtime: Krea Realtime 14B" in said


def test_a_layout_that_there_is_not(asked):
    assert "no layout is called 'self_force'" in asked(student(), "--layout", "self_force")


def test_no_file(asked):
    assert "there is no such file" in asked(None)
    assert "must be a directory, or end in .safetensors, .pt" in asked(b"GGUF", name="net.gguf")


def test_bases(asked, tmp_path):
    assert "must be the directory of a diffusers pipeline" in asked(student(), base=tmp_path / "none")
    index = json.loads((BASE / "model_index.json").read_text())
    shutil.copytree(BASE, tmp_path / "experts")
    second = {"transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (tmp_path / "experts" / "model_index.json").write_text(json.dumps(index | second))
    assert "its WanPipeline has transformer_2" in asked(student(), base=tmp_path / "experts")


def test_out_is_there(asked, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    assert "is there already" in asked(student(), "--out", str(tmp_path / "there"))
    assert (tmp_path / "there" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert main(["import", str(tmp_path / "net.pt"), "--base", str(BASE), "--out", str(tmp_path / "empty")]) == 0
