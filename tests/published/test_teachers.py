"""Files of Wan's own layout, and ComfyUI's, as a teacher: diffusers' network of the same weights."""

import json

import pytest
import torch
from attrs import evolve
from diffusers import WanPipeline
from flowmap_wan21 import Wan21
from safetensors.torch import save_file

import flowmap
from flowmap.cli import main
from tests.published.files import BASE, CPU, original, wan


def shards(weights, folder):
    folder.mkdir()
    names = sorted(weights)
    for k, part in enumerate((names[::2], names[1::2]), 1):
        save_file({n: weights[n] for n in part}, folder / f"diffusion_pytorch_model-0000{k}-of-00002.safetensors")


FILES = {
    "comfyui": lambda w, at: save_file({f"model.diffusion_model.{n}": v for n, v in w.items()}, at / "net.safetensors"),
    "wan": lambda w, at: save_file(w, at / "net.safetensors"),
    "wan14b": lambda w, at: shards(w, at / "net"),
    "trainer": lambda w, at: torch.save({"module": {f"module.{n}": v for n, v in w.items()}}, at / "net.pt"),
}


@pytest.mark.parametrize("layout", FILES)
def test_a_teacher_is_the_network_of_the_file(layout, tmp_path, capsys):
    net = wan()
    FILES[layout](original(net), tmp_path)
    (file,), out = tmp_path.glob("net*"), tmp_path / "out"
    said = [] if layout == "comfyui" else ["--layout", "wan"]
    assert main(["import", str(file), "--base", str(BASE), "--out", str(out), *said]) == 0
    assert "a diffusion model, to distil" in capsys.readouterr().out
    spec = flowmap.backbone(str(out))
    assert spec == Wan21(str(out)) and spec.sampling() == Wan21(str(BASE)).sampling()
    assert not (out / "flowmap.json").exists()
    teacher = evolve(spec, lora=None).build(frozenset({"teacher"}), **CPU)["teacher"]
    rng = torch.Generator().manual_seed(0)
    z, text, t = (
        torch.randn(2, 5, 4, 8, 8, generator=rng),
        torch.randn(2, 512, 32, generator=rng),
        torch.tensor([0.3, 0.9]),
    )
    with torch.no_grad():
        want = net(z.transpose(1, 2), 1000 * t, text, return_dict=False)[0].transpose(1, 2)
        torch.testing.assert_close(teacher(z, t, t, {"text": text}), want, atol=2e-5, rtol=0)
    pipeline = WanPipeline.from_pretrained(out)
    assert all(torch.equal(p, dict(net.named_parameters())[n]) for n, p in pipeline.transformer.named_parameters())


def test_diffusers_names_are_read_too(tmp_path):
    """A pipeline's directory, whose transformer is read."""
    net = wan()
    net.save_pretrained(tmp_path / "net" / "transformer")
    command = ["import", str(tmp_path / "net"), "--base", str(BASE), "--out", str(tmp_path / "out"), "--layout", "wan"]
    assert main(command) == 0
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"] == "WanPipeline"


def test_an_image_to_video_file_is_refused(tmp_path, capsys):
    weights = original(wan())
    weights["patch_embedding.weight"] = torch.zeros(128, 9, 1, 2, 2)
    weights["img_emb.proj.0.bias"] = torch.zeros(8)
    save_file(weights, tmp_path / "i2v.safetensors")
    command = ["import", str(tmp_path / "i2v.safetensors"), "--base", str(BASE), "--out", str(tmp_path / "out")]
    assert main([*command, "--layout", "wan"]) == 2
    said = capsys.readouterr().err
    assert "patch_embedding.weight is [128, 9, 1, 2, 2]: must be [128, 4, 1, 2, 2]" in said
    assert "img_emb.proj.0.bias" in said
