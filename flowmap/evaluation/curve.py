"""Quality against the number of steps, of a student beside its teacher."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from .. import validators
from .._types import Cond, Latent, Rng, Role, concat, select
from ..atomic import write_json, write_text
from ..data.video_folder import frames_of
from ..doing import counted
from ..guidance import guided_euler_step
from ..model import Codec, FlowMapSpec, Kind, Sampling
from ..objectives import Networks
from ..recipe import describe
from ..rollout import STEPS, sample
from ..times import grid_of
from ..training.run import environment
from . import album, plots, previews, records
from .metrics import Metric, Samples
from .records import Point
from .sampling import encode_image

KEY = 0x0E7A1  # apart from every key of training, which is longer
REAL_SEED = 0x0E7A1  # of the real videos that samples are compared with, apart from those that are judged beside them
SHOWN, PLAYED = 16, 4
FEW = 16  # samples of a seed, below which no number says anything

Real = Callable[[Sequence[str], int], Tensor]  # (prompts, seed) -> videos of them


def _ints(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(values)


def _strings(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(values)


def _metrics(values: Sequence[Metric]) -> tuple[Metric, ...]:
    return tuple(values)


def _counts(instance: object, attribute: Any, values: tuple[int, ...]) -> None:
    if not values or min(values) < 1 or list(values) != sorted(set(values)):
        raise ValueError(f"QualityCurve.{attribute.name} = {values}: must increase from at least 1")


@frozen
class QualityCurve:
    """Every sampler at every number of steps, on the same noise and prompts; each metric's mean and spread over seeds.

    Teacher: Euler steps of the ODE under guidance `guidance`, two calls a step. Student: jumps, one call a step; and
    with `consistency` the same weights under the sampler that jumps to data and noises again, which is what a flow map
    does away with. All use the grid of `backbone.shift`. With `teacher_sampler="flow_map"` the frozen network jumps
    too, and takes no guidance: it is a student, and the curve shows it before and after it was fine-tuned. own: of a
    student that knows the jump to data alone, or to the end of its phase, such as a published one: how it is sampled,
    at its own levels where as many steps are asked for, and that is the one way in which it is.

    prompts: of no training sample; sample i has prompt i modulo their number. shape: of a latent, (F, C, H, W).
    reference: Euler steps of the teacher's run that paired errors refer to; it is a point of the teacher's curve too.
    samples: for each of `seeds`. real: (prompts, seed) -> real videos. Those of `seeds` are measured as generated ones
    are, which is the floor of every metric; `real_samples` others are what both are compared with.
    images: files, one a prompt, of the first frames that networks from images to videos begin with, of the video's
    size; `real` videos then begin with them, or no distance to them is 0.
    """

    prompts: tuple[str, ...] = field(converter=_strings, validator=validators.min_len(1))
    metrics: tuple[Metric, ...] = field(converter=_metrics, validator=validators.min_len(1))
    shape: tuple[int, ...] = field(converter=_ints, validator=validators.min_len(1))
    guidance: float = field(default=3.0, validator=validators.ge(1.0))
    steps: tuple[int, ...] = field(default=(1, 2, 4, 8, 16, 32), converter=_ints, validator=_counts)
    reference: int = field(default=50, validator=validators.ge(1))
    seeds: tuple[int, ...] = field(default=(0, 1, 2), converter=_ints, validator=validators.min_len(1))
    samples: int = field(default=32, validator=validators.ge(2))
    batch: int = field(default=64, validator=validators.ge(1))
    consistency: bool = True
    real: Real | None = None
    real_samples: int = field(default=256, validator=validators.ge(2))
    teacher_sampler: Literal["euler", "flow_map"] = field(
        default="euler", validator=validators.in_(("euler", "flow_map"))
    )
    own: Sampling | None = field(default=None, validator=validators.optional(validators.instance_of(Sampling)))
    images: tuple[str, ...] = field(default=(), converter=_strings)

    @images.validator
    def _as_many(self, attribute: Any, images: tuple[str, ...]) -> None:
        if images and len(images) != len(self.prompts):
            raise ValueError(
                f"QualityCurve.images: {len(images)} for {len(self.prompts)} prompts: must be one a prompt"
            )

    @metrics.validator
    def _distinct(self, attribute: Any, metrics: tuple[Metric, ...]) -> None:
        names = [m.name for m in metrics]
        if len(set(names)) < len(names):
            raise ValueError(f"QualityCurve.metrics = {names}: their names must differ")

    def quick(self) -> QualityCurve:
        """A trial: the same points, few samples of few prompts. It shows that it runs, and says nothing of quality."""
        few = evolve(self, prompts=self.prompts[:2], images=self.images[:2], real_samples=min(self.real_samples, 4))
        return evolve(few, seeds=self.seeds[:2], samples=min(self.samples, 4))

    @property
    def guides(self) -> Mapping[Role, float]:
        return {"teacher": self.guidance} if self.teacher_sampler == "euler" else {}

    def points(self) -> tuple[Point, ...]:
        """In the order of the table; the reference is the teacher's last."""
        calls = 2 if self.teacher_sampler == "euler" and self.guidance != 1.0 else 1
        counts = sorted({*self.steps, self.reference})
        teacher = [Point("teacher", self.teacher_sampler, n, calls * n) for n in counts]
        made_for = () if self.own is None or self.own.times is None else (len(self.own.times),)
        steps = sorted({*self.steps, *made_for})
        student = [Point("student", "flow_map", n, n) for n in steps if self.own is None]
        kind: Kind = "consistency" if self.own is None else self.own.kind
        noised = [Point("student", kind, n, n) for n in steps if self.own is not None or self.consistency]
        return (*teacher, *student, *noised)

    @property
    def work(self) -> tuple[int, int]:
        """(calls of a network, of so many samples each)."""
        return len(self.seeds) * sum(point.calls for point in self.points()), self.samples

    def __call__(self, nets: Networks, backbone: FlowMapSpec, out: Path) -> None:
        """Write evaluation/{nfe.json, nfe.csv, table.txt, manifest.json}, plots/nfe.png and samples/ under `out`."""
        bench = Bench.of(self, nets, backbone)
        measured: dict[Point, list[dict[str, float]]] = {point: [] for point in self.points()}
        shown: dict[Point, Tensor] = {}
        with counted(self.work[0], "evaluation") as tick:
            for seed in self.seeds:
                for point, made in bench.run(seed):
                    measured[point].append({m.name: m.measure(made) for m in self.metrics})
                    shown.setdefault(point, made.videos[:SHOWN].cpu())
                    tick(point.calls)
        found = [
            records.record(point, metric, values)
            for metric in self.metrics
            for point in measured
            if all(map(math.isfinite, values := [one[metric.name] for one in measured[point]]))
        ]
        self._write(found, self._real(bench), shown, bench, out)

    def written(self, out: Path) -> bool:
        """Whether this very evaluation is there; its manifest is written last."""
        try:
            manifest = json.loads((out / "evaluation" / "manifest.json").read_text())
        except (OSError, ValueError):
            return False
        return bool(manifest["digest"] == self.digest())

    def digest(self) -> str:
        told = describe(self)
        if self.own is None:  # as it was told before there was such a field
            del told["own"]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _real(self, bench: Bench) -> dict[str, tuple[float, float]]:
        """Each metric of real videos, as the codec gives them back."""
        if self.real is None:
            return {}
        made = [bench.real(self.real, seed) for seed in self.seeds]
        values = {m.name: [m.measure(one) for one in made] for m in self.metrics}
        return {name: records.spread(of) for name, of in values.items() if all(map(math.isfinite, of))}

    def _write(
        self,
        found: Sequence[records.Record],
        real: Mapping[str, tuple[float, float]],
        shown: Mapping[Point, Tensor],
        bench: Bench,
        out: Path,
    ) -> None:
        folder = out / "evaluation"
        (folder / "manifest.json").unlink(missing_ok=True)
        write_json(folder / "nfe.json", records.as_json(found))
        write_text(folder / "nfe.csv", records.as_csv(found))
        write_text(folder / "table.txt", f"{self.title}\n\n{records.table(found, real)}\n")
        plots.curves(found, real, self.title, out / "plots" / "nfe.png")
        previews.write(shown, bench.texts[:SHOWN], out / "samples")
        few = {point: videos[:PLAYED] for point, videos in shown.items()}
        album.write(few, bench.texts[:PLAYED], out / "samples", bench.rate)
        shape = next(iter(shown.values())).shape[1:]
        write_json(folder / "manifest.json", self.manifest(bench.shift, tuple(shape), real))

    @property
    def title(self) -> str:
        """One line that says what was measured."""
        said, beside = validators.counted, f"teacher with guidance {self.guidance:g}"
        if self.teacher_sampler == "flow_map":
            beside = "before: the student that was fine-tuned"
        return (
            f"quality against the number of steps: {said(len(self.seeds), 'seed')} × {said(self.samples, 'sample')}, "
            f"{said(len(self.prompts), 'prompt')}, mean ± spread over seeds; {beside}"
            f"{'; SO FEW SAMPLES MEAN NOTHING: a trial' if self.samples < FEW else ''}"
        )

    def manifest(self, shift: float, video: tuple[int, ...], real: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
        """All that is needed to do it again, and to compare with another's."""
        return {
            "digest": self.digest(),
            "prompts": {
                "count": len(self.prompts),
                "first": self.prompts[0],
                "sha256": hashlib.sha256("\n".join(self.prompts).encode()).hexdigest(),
            },
            "seeds": list(self.seeds),
            "samples_per_seed": self.samples,
            "real_samples": self.real_samples if self.real is not None else 0,
            "steps": list(self.steps),
            "shape": {"latent": list(self.shape), "video": list(video)},
            "grid": {"shift": shift} | ({} if self.own is None else {"own": self.own.times}),
            "teacher": {
                "sampler": self.teacher_sampler,
                "guidance": self.guidance if self.teacher_sampler == "euler" else 1.0,
                "reference_steps": self.reference,
            },
            "metrics": {m.name: {"better": m.better, "measure": describe(m.measure)} for m in self.metrics},
            "real": {name: {"mean": mean, "std": std} for name, (mean, std) in real.items()},
            "environment": environment(),
        }


@frozen(eq=False)
class Bench:
    """A curve with everything that it needs loaded."""

    curve: QualityCurve
    nets: Networks
    codec: Codec
    cond: Cond  # of every sample of a seed
    null: Cond
    shift: float
    rate: float | None  # frames a second
    texts: tuple[str, ...]
    real_samples: Samples | None
    device: torch.device

    @classmethod
    def of(cls, curve: QualityCurve, nets: Networks, backbone: FlowMapSpec) -> Bench:
        device = next(nets["student"].parameters()).device
        codec = backbone.codec(device=device, dtype=torch.float32)
        rows = torch.arange(curve.samples, device=device) % len(curve.prompts)
        cond = select({**codec.encode_prompts(curve.prompts), **_images(curve, backbone, codec)}, rows)
        texts = tuple(curve.prompts[i] for i in rows.tolist())
        others = [curve.prompts[i % len(curve.prompts)] for i in range(curve.real_samples)]
        real = curve.real and Samples.given_back(codec, curve.real(others, REAL_SEED).to(device), others, curve.batch)
        rates = backbone.shift, backbone.frame_rate()
        return cls(curve, nets, codec, cond, codec.encode_prompts([""]), *rates, texts, real, device)

    def run(self, seed: int) -> Iterator[tuple[Point, Samples]]:
        """Every point of one seed, the reference first."""
        points = self.curve.points()
        fine = next(p for p in points if p.model == "teacher" and p.steps == self.curve.reference)
        reference = self.made(fine, seed)
        yield fine, reference
        for point in points:
            if point != fine:
                yield point, self.made(point, seed, reference.latents)

    def real(self, real: Real, seed: int) -> Samples:
        """Real videos of the same prompts, as the codec gives them back."""
        return self._samples(self.codec.encode(real(self.texts, seed)), None)

    def made(self, point: Point, seed: int, reference: Latent | None = None) -> Samples:
        """What a point makes of the seed's noise, which is the same for all of them."""
        noise = Rng.seeded(KEY, seed).noise_like(torch.zeros(self.curve.samples, *self.curve.shape, device=self.device))
        return self._samples(self._generate(point, noise), reference)

    def _generate(self, point: Point, noise: Latent) -> Latent:
        teacher = guided_euler_step(self.curve.guidance, self.null)
        step = teacher if point.sampler == "euler" else STEPS[point.sampler]
        u, parts = self.nets[point.model], torch.arange(len(noise), device=noise.device).split(self.curve.batch)
        own = self.curve.own if point.model == "student" else None
        grid = grid_of(own or Sampling(), point.steps, self.shift, u.boundary)
        return torch.cat([sample(u, noise[part], select(self.cond, part), grid=grid, step=step) for part in parts])

    def _samples(self, latents: Latent, reference: Latent | None) -> Samples:
        return Samples(self.codec.decode(latents), latents, self.texts, reference, self.real_samples)


def _images(curve: QualityCurve, backbone: FlowMapSpec, codec: Codec) -> Cond:
    """What networks that begin with an image are told of the curve's, one row a prompt."""
    if bool(curve.images) != bool(backbone.images):
        does = "begins with an image: give one a prompt" if backbone.images else "takes no image: leave them out"
        raise ValueError(f"QualityCurve.images: {backbone.about().name} {does}")
    if not curve.images:
        return {}
    f, c, h, w = curve.shape
    made = [encode_image(backbone, codec, (f, c, h, w), frames_of(Path(file), 1)) for file in curve.images]
    return concat(*made)
