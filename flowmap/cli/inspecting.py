"""flowmap inspect: what a file is, a student's or a teacher's."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from .command import Command, positive, whole
from .errors import UsageError
from .sample import size
from .threads import wait_passively

if TYPE_CHECKING:
    import torch

    from .._types import Role
    from ..model import FlowMap, FlowMapSpec


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("network", metavar="DIR", help="a run, a student's directory, or a diffusion model's")
    parser.add_argument("--teacher", metavar="BACKBONE", help="a diffusion model to compare the diagonal with")
    parser.add_argument("--data", metavar="DIR", help="of `flowmap data encode`, in place of --prompt")
    parser.add_argument("--prompt", action="append", help="on what the network makes of it; may be given several times")
    parser.add_argument("--size", type=size, metavar="FxHxW", help="frames, height, width; as in training by default")
    parser.add_argument("--samples", type=positive, default=8, metavar="N", help="8 by default")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the noise, 0 by default")


def run(options: Namespace) -> None:
    path = Path(options.network)
    if not path.is_dir():
        raise UsageError(f"{options.network!r}: there is no such directory")
    if (options.data is None) == (options.prompt is None):
        raise UsageError(
            "say what to measure it on: --prompt TEXT, or --data DIR of `flowmap data encode`, one of them"
        )
    wait_passively(options.console)
    import torch

    from .. import Rng
    from ..data.shards import LatentShards
    from ..evaluation.inspection import inspect
    from ..evaluation.sampling import latent_shape
    from ..export.forms import located
    from ..plugins import backbone

    path, device = located(path), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = backbone(str(path))
    if options.data is None:
        codec = spec.codec(device=device, dtype=torch.float32)
        frames, area = (None, None) if options.size is None else (options.size[0], options.size[1:])
        shape, x = latent_shape(codec, path, frames, area), None
        texts = [options.prompt[i % len(options.prompt)] for i in range(options.samples)]
        cond, null = codec.encode_prompts(texts), codec.encode_prompts([""])
        like = torch.zeros(options.samples, *shape, device=device)
    else:
        data = LatentShards.open(Path(options.data))
        batch = data.batch(range(min(options.samples, len(data)))).to(device)
        like, x, cond, null = batch.x, batch.x, batch.cond, batch.null
    noise = Rng.seeded(options.seed).noise_like(like)
    u = _network(spec, path, device)
    teacher = None if options.teacher is None else _teacher(backbone(options.teacher), device)
    found = inspect(u, noise, cond, teacher=teacher, null=null, x=x, shift=spec.shift, seed=options.seed)
    for line in found.lines():
        print(line)


def _network(spec: FlowMapSpec, path: Path, device: torch.device) -> FlowMap:
    """As its files are: not lifted, where they have one time."""
    import torch

    if (path / "flowmap.json").is_file():
        return spec.load(path, device=device, dtype=torch.float32).eval()
    role: Role = "student" if spec.two_times else "teacher"
    return spec.build(frozenset({role}), device=device, dtype=torch.float32)[role].eval()


def _teacher(spec: FlowMapSpec, device: torch.device) -> FlowMap:
    import torch

    return spec.build(frozenset({"teacher"}), device=device, dtype=torch.float32)["teacher"].eval()


COMMAND = Command(
    "inspect",
    "measure what a network is: its diagonal, its flow map, its guidance",
    'flowmap inspect runs/quickstart/student --teacher wan21 --prompt "a seven moving up quickly"',
    run,
    arguments,
)
