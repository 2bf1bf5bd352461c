"""A LoRA and a second embedder on an AnyFlow student: what peft computes with the same tensors."""

import json

import pytest
import torch
from attrs import evolve
from flowmap_far import Far
from flowmap_wan21 import Wan21
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

import flowmap
from flowmap.cli import main
from flowmap.model import Sampling
from tests.published.files import BASE, CPU

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(an AnyFlow student's directory, the same in peft after a training that moved everything that it trains)."""
    import diffusers

    at = tmp_path_factory.mktemp("base") / "student"
    spec = Wan21(BASE, lora=None)
    spec.save(spec.build(frozenset({"student"}), **CPU)["student"], at)
    (at / "flowmap.json").write_text(json.dumps({"guidance": 3.0, "latent_shape": [5, 4, 8, 8]}))
    net = diffusers.AnyFlowTransformer3DModel.from_pretrained(at, subfolder="transformer")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, modules_to_save=["delta_embedder"])
    moved, rng = get_peft_model(net, config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in moved.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=rng)
    return at, moved.eval()


def parted(state):
    """LoRA and embedder under keys of their own, as plain names, with alpha."""
    plain = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    second = {n.partition("delta_embedder.")[2]: v for n, v in plain.items() if "delta_embedder" in n}
    lora = {n: v for n, v in plain.items() if "delta_embedder" not in n}
    return {"lora": lora, "delta_embedder": second, "config": {"lora_alpha": 8}, "step": 100}


FILES = {"peft": lambda state: state, "parted": parted, "student": lambda state: {"model": state}}


@pytest.mark.parametrize("layout", FILES)
def test_it_is_what_peft_computes(layout, trained, tmp_path, capsys):
    base, moved = trained
    torch.save(FILES[layout](get_peft_model_state_dict(moved)), tmp_path / "rl.pt")
    assert main(["import", str(tmp_path / "rl.pt"), "--base", str(base), "--out", str(tmp_path / "out")]) == 0
    assert ("alpha is taken for 2 times the rank" in capsys.readouterr().out) == (layout != "parted")
    assert Sampling.of(tmp_path / "out") == Sampling("flow_map", 3.0)
    assert json.loads((tmp_path / "out" / "flowmap.json").read_text())["latent_shape"] == [5, 4, 8, 8]
    u, rng = flowmap.load(tmp_path / "out"), torch.Generator().manual_seed(0)
    z, text = (torch.randn(shape, generator=rng) for shape in ((2, 5, 4, 8, 8), (2, 512, 32)))
    t, r = torch.tensor([0.4, 0.9]), torch.tensor([0.1, 0.2])
    with torch.no_grad():
        made = u(z, t, r, {"text": text})
        want = moved(
            hidden_states=z,
            timestep=1000 * t[:, None].expand(2, 5),
            r_timestep=1000 * r[:, None].expand(2, 5),
            encoder_hidden_states=text,
            return_dict=False,
        )[0]
        start = flowmap.load(base)(z, t, r, {"text": text})
    torch.testing.assert_close(made, want.reshape(made.shape), atol=5e-5, rtol=0)
    assert (made - start).abs().max() > 1e-2


def test_a_causal_base_stays_causal(trained, tmp_path):
    base = tmp_path / "far"
    spec = Far(BASE, lora=None, partition=(1, 3, 3))
    spec.save(spec.build(frozenset({"student"}), **CPU)["student"], base)
    torch.save(get_peft_model_state_dict(trained[1]), tmp_path / "rl.pt")
    assert main(["import", str(tmp_path / "rl.pt"), "--base", str(base), "--out", str(tmp_path / "out")]) == 0
    spec = flowmap.backbone(str(tmp_path / "out"))
    assert isinstance(spec, Far) and flowmap.load(tmp_path / "out").partition == (1, 3, 3)
    assert evolve(spec, lora=None).sampling().kind == "flow_map"


@pytest.mark.parametrize(
    "wrong, said",
    [
        (
            lambda s: {n: v for n, v in s.items() if "linear_2" not in n},
            "it has no condition_embedder.delta_embedder.linear_2",
        ),
        (
            lambda s: {n.replace("blocks.3", "blocks.9"): v for n, v in s.items()},
            "blocks.9.attn1.to_k is no linear layer",
        ),
        (lambda s: {n: v[..., :64] if "lora_A" in n else v for n, v in s.items()}, "must be A [rank, 128]"),
        (
            lambda s: s | {"blocks.0.norm1.weight": torch.zeros(2)},
            "norm1.weight is neither of a LoRA nor of the second",
        ),
    ],
)
def test_what_does_not_fit_is_named(wrong, said, trained, tmp_path, capsys):
    base, moved = trained
    torch.save(wrong(get_peft_model_state_dict(moved)), tmp_path / "rl.pt")
    assert main(["import", str(tmp_path / "rl.pt"), "--base", str(base), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_base_of_one_time_is_refused(trained, tmp_path, capsys):
    torch.save(get_peft_model_state_dict(trained[1]), tmp_path / "rl.pt")
    assert main(["import", str(tmp_path / "rl.pt"), "--base", str(BASE), "--out", str(tmp_path / "out")]) == 2
    assert "its transformer is WanTransformer3DModel: must be one of AnyFlow" in capsys.readouterr().err
