"""Published causal Wan, brought: chunk after chunk with a cache, it is the block-causal network of the same weights."""

from itertools import accumulate, pairwise

import torch

import flowmap
from flowmap.cli import main
from flowmap.model import Sampling
from tests.published.files import BASE, block_causal, original, wan


def brought(tmp_path, net):
    file, out = tmp_path / "self_forcing_dmd.pt", tmp_path / "out"
    torch.save({"generator_ema": {f"model.{name}": value for name, value in original(net).items()}}, file)
    assert main(["import", str(file), "--base", str(BASE), "--out", str(out)]) == 0
    return out


def given():
    rng = torch.Generator().manual_seed(1)
    x, z = torch.randn(2, 2, 9, 4, 8, 8, generator=rng)
    text = torch.randn(2, 512, 32, generator=rng)
    text[:, 12:] = 0
    return x, z, text, torch.tensor([0.6, 0.9])


@torch.no_grad()
def streamed(u, x, z, t, text):
    """u of every chunk, the history in the cache."""
    cache, made, sizes = None, [], u.chunks(z.shape[1])
    for clean, noisy in zip(x.split(sizes, 1), z.split(sizes, 1), strict=True):
        made.append(u(noisy, t, torch.zeros_like(t), {"text": text}, cache))
        cache = u.extend(cache, clean, {"text": text})
    return torch.cat(made, 1)


def reference(net, x, z, t, text, sizes, **more):
    ends = [0, *accumulate(sizes)]
    parts = [
        block_causal(net, x[:, :i], z[:, i:j], t[:, None], text, sizes[: k + 1], **more)
        for k, (i, j) in enumerate(pairwise(ends))
    ]
    return torch.cat(parts, 1)


def error(u, net, sizes=(3, 3, 3)):
    x, z, text, t = given()
    made, want = streamed(u, x, z, t, text), reference(net, x, z, t, text, sizes)
    return float((made - want).abs().max() / want.abs().max())


def test_streaming_is_the_block_causal_network(tmp_path):
    net = wan()
    assert error(flowmap.load(brought(tmp_path, net)), net) < 1e-5


def test_it_is_sampled_at_its_own_levels_by_default(tmp_path, capsys):
    out = brought(tmp_path, wan())
    assert Sampling.of(out) == flowmap.backbone(str(out)).sampling()
    assert Sampling.of(out).times == (1.0, 0.9375, torch.tensor(5 / 6).item(), 0.625)
    sample = ["sample", str(out), "--prompt", "a seven moving up", "--size", "13x32x32", "--out"]
    assert main([*sample, str(tmp_path / "own.gif")]) == 0
    assert main([*sample, str(tmp_path / "four.gif"), "--steps", "4"]) == 0
    assert (tmp_path / "own.gif").read_bytes() == (tmp_path / "four.gif").read_bytes()
    assert main([*sample[:-3], "--out", str(tmp_path / "a.gif")]) == 2
    assert "does not say which size it was trained on" in capsys.readouterr().err
