"""What `flowmap data check` says, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from flowmap_digits import TINY_WAN
from flowmap_wan.spec import TINY
from flowmap_wan21 import Wan21

from flowmap.cli import main
from flowmap.cli.fit import fit
from flowmap.data.check import check
from flowmap.data.format import Index, Plan
from flowmap.data.writer import Made, write
from tests.toys import Toy as Network

from .made import ENCODERS, Toy, written


def said(path: Path, *more: str, capsys: Any) -> tuple[int, list[str]]:
    code = main(["data", "check", str(path), *more])
    captured = capsys.readouterr()
    assert not captured.err
    return code, captured.out.splitlines()


def test_sound_data(tmp_path: Path, capsys: Any) -> None:
    data = written(tmp_path)
    code, lines = said(tmp_path, capsys=capsys)
    assert code == 0 and lines[-1] == "sound"
    text = "\n".join(lines)
    assert "10 samples in 3 shards" in text and "latents float32 3x2x2x2" in text and "5 different prompts" in text
    assert "condition 'text' float32 6x4" in text and "condition 'label' int64 a number" in text
    assert "made with vae aaaaaaaaaaaa" in text and "warning" not in text and "refused" not in text
    x = data.batch(range(10)).x.transpose(0, 2).flatten(1)
    assert f"mean a channel: {x[0].mean():.2f} {x[1].mean():.2f}" in text
    assert f"std a channel:  {x[0].std(correction=0):.2f} {x[1].std(correction=0):.2f}" in text
    assert f"values from {x.min():.3g} to {x.max():.3g}" in text


@frozen
class Backbone(Network):
    known: tuple[tuple[str, str], ...] = tuple(ENCODERS.items())

    def encoders(self) -> dict[str, str]:
        return dict(self.known)


@pytest.mark.parametrize(
    "known, kinds, what",
    [
        (ENCODERS, [], ""),
        ({**ENCODERS, "vae": "c" * 64}, ["refused"], "latents of another VAE"),
        ({**ENCODERS, "text": "c" * 64}, ["refused"], "texts of another text encoder"),
        ({"vae": ENCODERS["vae"]}, ["warning"], "not compared with the backbone's: text; no hash is known"),
    ],
)
def test_the_encoders_are_compared(tmp_path: Path, known: dict[str, str], kinds: list[str], what: str) -> None:
    written(tmp_path)
    found = [f for f in check(tmp_path, Backbone(known=tuple(known.items()))) if f.kind != "note"]
    assert [f.kind for f in found] == kinds and all(what in f.text for f in found)


def odd(path: Path, change: Any, plan: Plan | None = None) -> list[str]:
    """Findings about data of which the first shard is changed before it is written."""

    class Odd(Toy):
        def samples(self, first: int, last: int) -> Made:
            made = super().samples(first, last)
            return made if first else change(made)

    write(path, plan or Plan(10, 4, {}, ENCODERS), Odd)
    return [f"{finding.kind}: {finding.text}" for finding in check(path)]


def test_what_is_odd_is_a_warning(tmp_path: Path) -> None:
    found = odd(tmp_path / "twice", lambda m: evolve(m, x=m.x[[0, 1, 2, 1]]))
    assert "warning: 1 latents are another sample's too: 1 and 3" in found
    found = odd(tmp_path / "words", lambda m: evolve(m, prompts=[" ", " ", *m.prompts[2:]]))
    assert "warning: 2 samples have no prompt: 0, 1" in found
    found = odd(tmp_path / "text", lambda m: evolve(m, cond={**m.cond, "text": 0 * m.cond["text"]}))
    assert "warning: 4 samples have only padding for a text: 0, 1, 2, 3" in found
    one = Plan(4, 4, {}, ENCODERS)
    found = odd(tmp_path / "flat", lambda m: evolve(m, x=m.x * torch.tensor([1.0, 0.0])[:, None, None]), one)
    assert "warning: channel 1 has one value everywhere" in found
    found = odd(tmp_path / "large", lambda m: evolve(m, x=m.x * torch.tensor([30.0, 1.0])[:, None, None]), one)
    assert any(line.startswith("warning: channel 0 has std ") and "should be normalised" in line for line in found)
    assert not [line for line in found if line.startswith("refused")]


def test_every_bad_sample_has_a_line_up_to_ten(tmp_path: Path, capsys: Any) -> None:
    written(tmp_path, 40)
    for k in range(3):
        file = tmp_path / f"shard-0000{k}.safetensors"
        damaged = bytearray(file.read_bytes())
        for row in range(4):
            damaged[-1 - 96 * row] ^= 1  # a latent has 96 bytes
        file.write_bytes(damaged)
    (tmp_path / "shard-00009.safetensors").unlink()
    code, lines = said(tmp_path, capsys=capsys)
    refused = [line for line in lines if line.startswith("refused")]
    assert code == 1 and len(refused) == 12
    assert "shard-00000.safetensors, sample 0 is damaged" in refused[0]
    assert refused[10] == "refused  ... 3 more samples that cannot be read"
    assert refused[-1] == "refused; a damaged file that you delete is made again by the command that made it"


def test_what_is_not_in_the_index_is_told(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "shard-00007.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("mine")
    found = [f.text for f in check(tmp_path) if f.kind == "warning"]
    assert found == ["1 shard that index.json does not list, such as shard-00007.safetensors"]
    (tmp_path / "null.safetensors").write_bytes(b"1")
    assert ["null.safetensors" in f.text for f in check(tmp_path) if f.kind == "refused"] == [True]


def test_no_data_is_a_sentence(tmp_path: Path, capsys: Any) -> None:
    code, lines = said(tmp_path, capsys=capsys)
    assert code == 1 and lines[0].startswith(f"refused  {tmp_path} holds no encoded data: index.json: No such file")
    (tmp_path / ".job.json").write_text(json.dumps({"count": 10, "shard": 0, "made_from": {}, "encoders": {}}))
    assert said(tmp_path, capsys=capsys)[0] == 1


def encoded(path: Path, x: tuple[int, ...], text: tuple[int, int]) -> None:
    """Data of those shapes whose encoders nobody knows."""

    class Shaped:
        def null(self) -> dict[str, Any]:
            return {"text": torch.ones(1, *text)}

        def samples(self, first: int, last: int) -> Made:
            return Made(torch.randn(last - first, *x), ["words"] * (last - first), {"text": torch.ones(1, *text)})

    write(path, Plan(2, 2, {}, {}), Shaped)


@pytest.mark.parametrize(
    "x, text, said",
    [
        ((3, 4, 4, 4), (12, 32), None),
        ((3, 16, 4, 4), (12, 32), "net.patch_embedding: weight is [24, 4, 1, 2, 2]"),
        ((3, 4, 5, 4), (12, 32), "latents of 5 × 4"),
        ((3, 4, 4, 4), (12, 16), "net.condition_embedder.text_embedder.linear_1"),
    ],
    ids=["as it is", "channels", "odd height", "another text encoder"],
)
def test_shapes_are_compared_with_the_network_where_no_hash_is_known(
    tmp_path: Path, x: tuple[int, ...], text: tuple[int, int], said: str | None
) -> None:
    encoded(tmp_path, x, text)
    config = {**TINY, "text_dim": 32, "num_layers": 1}
    found = [*fit(Index.read(tmp_path), Wan21(None, lora=None, config=config))]
    if said is None:
        assert [f.kind for f in found] == ["note"]
    else:
        assert {f.kind for f in found} == {"refused"} and all(said in f.text for f in found)


def test_data_of_four_channels_is_not_for_a_model_of_sixteen(tmp_path: Path, capsys: Any) -> None:
    encoded(tmp_path, (3, 4, 4, 4), (512, 4096))
    code, lines = said(tmp_path, "--backbone", "wan21", capsys=capsys)
    assert code == 1 and any("no hash is known" in line for line in lines)
    assert any(
        line.startswith("refused  the teacher (Wan-AI/Wan2.1-T2V-1.3B") and "[1, 4, 3, 4, 4]" in line for line in lines
    )


# ---------------------------------------------------------------- the hashes of real encoders
def test_a_copy_of_the_encoders_is_the_same_and_a_change_is_not(tmp_path: Path) -> None:
    """However the weights are cut into files, and whatever wrote the settings."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(TINY_WAN, tmp_path / "wan")
    before, folder = Wan21(TINY_WAN).encoders(), tmp_path / "wan"
    assert set(before) == {"vae", "text"} and Wan21(folder).encoders() == before
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    names = sorted(weights)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    for k, part in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in part}, folder / "vae" / f"part-{k}.safetensors")
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps({**config, "_diffusers_version": "9"}, indent=7))
    assert Wan21(folder).encoders() == before
    (folder / "vae" / "config.json").write_text(json.dumps({**config, "latents_mean": [1.0] * 4}))
    other = Wan21(folder).encoders()
    assert other["vae"] != before["vae"] and other["text"] == before["text"]
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    weights[names[0]] += 1e-3
    save_file({name: weights[name] for name in names[::2]}, folder / "vae" / "part-0.safetensors")
    assert Wan21(folder).encoders()["vae"] not in (before["vae"], other["vae"])


def test_what_is_not_local_is_not_known() -> None:
    assert Wan21(None).encoders() == Wan21("nobody/never-downloaded").encoders() == {}
