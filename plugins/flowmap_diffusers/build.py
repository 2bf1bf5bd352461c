"""Networks for the roles, out of a pipeline's directory, a hub id, or random numbers."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from flowmap_lora.quantised import filling, linear, made_of, replace
from flowmap_lora.roles import fill_adapter, of_init
from flowmap_lora.start import Copies, Pairs, added, pairs
from torch import Tensor, nn

from flowmap import FlowMap
from flowmap._types import Role
from flowmap.mistaken import read
from flowmap.model import Put, Rows, WeightsError, require_fit
from flowmap.time_embedding import keep_exact, lift
from flowmap.validators import listed

from . import vp
from .bases import began
from .causal import kind
from .drawn import drawn
from .folder import fetch
from .loading import slices, stored
from .network import DiffusersFlowMap, Recomputing, Running
from .row import Positions, Row
from .settings import STUDENT

if TYPE_CHECKING:
    from .settings import Settings

WAVES = ("time_proj", "timesteps_proj")
"""What diffusers calls the sinusoids beside an embedder; those of r are the same."""
TWO = re.compile(r"\.(now|then)\.")
"""What a lifted embedder adds to the names of its layers."""

WEIGHTS = "diffusion_pytorch_model.two_times.safetensors"
"""Of a student; a name that the plain class does not read."""


def build(
    spec: Settings, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype
) -> Mapping[Role, DiffusersFlowMap]:
    """With adapters one lifted base serves every role; without, the student is lifted, the others embed t alone."""
    row, student = spec.row, spec.is_student
    positions, schedule = positions_of(spec), schedule_of(spec)
    if student and "critic" in roles:
        raise ValueError(
            f"{spec.path} is a distilled student: teacher and critic must start as the diffusion model that it was "
            "distilled from; give that one as Recipe.teacher"
        )
    if student and (own := _saved(spec)["gamma"]) != spec.gamma:
        raise ValueError(
            f"Diffusers.gamma = {spec.gamma}: must be {own}, as the student in {spec.path} was trained with"
        )
    base = plain(spec, device=device, dtype=dtype)
    if spec.base is not None:
        made_of(base, lambda: Source.of(evolve(spec, base=None), dtype).rows)
    built: dict[Role, DiffusersFlowMap] = {}
    shared: tuple[Any, Running] | None = None
    for role in sorted(roles):
        two = role == "student" or student
        if shared is None or spec.lora is None:
            net, running = copy.deepcopy(base) if spec.lora is None else base, Running()
            hear(net, row, running, spec.gamma if spec.lora is not None or two else None, dtype)
            if student and device.type != "meta":
                Source.of(spec, dtype).into(net, device)  # the second embedders have numbers of their own
            if spec.checkpointing:
                net.enable_gradient_checkpointing(Recomputing(running, spec.checkpointing))
            shared = net, running
        net, running = shared
        told: dict[str, Any] = {"positions": positions, "computes": dtype, "two_times": two}
        built[role] = kind(row)(net, row, role, running, **told, lora=spec.lora, schedule=schedule)
        built[role].copies = {} if student else copies(net)
    for role, u in built.items():
        u.eval()
        u.guidance, u.shapes = spec.sampling().guidance, spec.shapes()
        if role != "teacher":
            u.thaw()
        if device.type != "meta":
            began(spec, u)
    return built


def plain(spec: Settings, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The network as diffusers has it, frozen."""
    net = empty(spec, dtype)
    if spec.base is not None:
        replace(net, linear(net, spec.row.large), spec.base)
    if device.type != "meta":
        Source.of(spec, dtype).into(net, device)
        spec.row.ready(net, device)
    return net.requires_grad_(False)


def hear(net: Any, row: Row, running: Running, gamma: float | None, dtype: torch.dtype) -> None:
    """Every embedder of the time reads the clock. gamma None: of one time; a network with two of its own is not
    lifted in any case. dtype: that the network computes in."""
    for path in row.embedders:
        owner = path.rpartition(".")[0]
        found = [name for name, _ in net.get_submodule(owner).named_children() if name in WAVES]
        features = f"{owner}.{found[0]}".lstrip(".") if found else None
        if gamma is None or row.second:
            told: dict[str, Any] = {"features": features, "others": row.others, "second": path not in row.times}
            keep_exact(net, path, clock=running.clock, **told)
        else:
            lift(net, path, gamma, clock=running.clock, features=features, others=row.others)
        if found:  # some ask the parameters of the embedder, which are float32 here, for the type that they go on in
            net.get_submodule(path).register_forward_hook(GoesOn(dtype))


def copies(net: nn.Module) -> Copies:
    """The layers of an embedder's `now` and `then` by the name that they have in the plain network."""
    found: dict[str, tuple[str, ...]] = {}
    for name in [n for n, m in net.named_modules() if isinstance(m, nn.Linear) and TWO.search(n)]:
        plain = TWO.sub(".", name)
        found[plain] = (*found.get(plain, ()), name)
    return found


@frozen
class GoesOn:
    """A hook: what a module gives, in `dtype`."""

    dtype: torch.dtype

    def __call__(self, module: nn.Module, given: Any, made: Tensor) -> Tensor:
        return made.to(self.dtype)


def empty(spec: Settings, dtype: torch.dtype) -> Any:
    """`hollow`, of the size of `spec`."""
    return hollow(spec.row, spec.network(), dtype)


def hollow(row: Row, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The plain network without numbers: parameters on the meta device, and what is no parameter as it is made."""
    from accelerate import init_empty_weights

    cls, _ = row.classes()
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        net: Any = cls(**config)
    kept = exact(row, cls)
    for name, p in net.named_parameters():
        p.data = p.data.to(torch.float32 if kept.search(name) else dtype)
    return net.eval()


def exact(row: Row, cls: Any) -> re.Pattern[str]:
    """Of what stays float32 in a network of any precision: the embedders of the time, and what diffusers keeps so."""
    paths = [rf"{re.escape(path)}\." for path in row.embedders]
    return re.compile("|".join([*paths, *(rf"(^|\.){re.escape(m)}(\.|$)" for m in cls._keep_in_fp32_modules or ())]))


FUSE = "fuse"


def style(spec: Settings, plain: nn.Module) -> Pairs:
    """What `spec.fuse` adds to the layers of the plain network."""
    return {} if spec.fuse is None else pairs(spec.fuse, plain, spec.row.pipeline, FUSE, {})


@frozen
class Source:
    """The tensors of a network by name: those of a file, or drawn.

    A lifted network has its embedders under `now` and `then`; in a plain one's file both are the one that it has.
    """

    stored: Mapping[str, Any]
    exact: re.Pattern[str]
    dtype: torch.dtype
    times: tuple[str, ...]
    style: Pairs

    @classmethod
    def of(cls, spec: Settings, dtype: torch.dtype) -> Source:
        plain = empty(spec, dtype)
        told = exact(spec.row, type(plain)), dtype, spec.row.embedders, style(spec, plain)
        if spec.path is None:
            return cls(drawn(plain, spec.seed), *told)
        if spec.is_student:  # whose file is none of the plain class
            return cls(slices([Path(spec.path) / "transformer" / WEIGHTS]), *told)
        if Path(spec.path).is_dir():
            files = sorted((Path(spec.path) / "transformer").glob("diffusion_pytorch_model*.safetensors"))
            if not files:
                raise WeightsError(f"{spec.path}: transformer/ has no diffusion_pytorch_model*.safetensors")
            require_fit(files, plain, more=True)
        return cls(stored(spec.path), *told)

    def rows(self, name: str) -> Rows:
        if name not in self.stored:
            name = TWO.sub(".", name)
        if name not in self.stored:  # the plain form of a student
            path = next((path for path in self.times if name.startswith(f"{path}.")), "")
            name = f"{path}.now{name.removeprefix(path)}"
        part, dtype = self.stored[name], torch.float32 if self.exact.search(name) else self.dtype
        if (pair := self.style.get(name.removesuffix(".weight"))) is not None:
            return added(part, pair, dtype)
        return lambda rows: part[rows].to(dtype)

    def into(self, net: nn.Module, device: torch.device) -> None:
        """Give `net` numbers, a tensor at a time."""
        rows = filling(net, self.rows)
        for prefix, layer in net.named_modules():
            for name, p in list(layer.named_parameters(recurse=False)):
                value = rows(f"{prefix}.{name}".lstrip("."))(slice(None))
                layer.register_parameter(name, nn.Parameter(value.to(device), p.requires_grad))
            for name, buffer in list(layer.named_buffers(recurse=False)):
                key = f"{prefix}.{name}".lstrip(".")
                made = self.stored[key][:].to(buffer.dtype) if key in self.stored else buffer
                layer._buffers[name] = made.to(device)


def fill(spec: Settings, nets: Mapping[Role, FlowMap], put: Put, dtype: torch.dtype) -> None:
    """What `build` gives to networks that were built on the meta device."""
    source = Source.of(spec, dtype)
    members = [u for u in nets.values() if isinstance(u, DiffusersFlowMap)]
    for net in {id(u.net): u.net for u in members}.values():
        rows = filling(net, source.rows)
        for name, p in net.named_parameters():
            if ".lora_" not in name:
                put(p, rows(name))
    for u in members:
        began(spec, u, source.rows)
        if u.lora is not None and u.adapter is not None:
            fill_adapter(u.net, u.adapter, u.lora, put, of_init(u.net, u.role, u.lora, u.row.pipeline, u.copies))


def positions_of(spec: Settings) -> Positions:
    """With the factors of the pipeline's own VAE: positions of the published one would be wrong in silence."""
    temporal, spatial = spec.row.vae
    config = None if spec.path is None else Path(spec.path) / "vae" / "config.json"
    if config is not None and config.is_file():
        temporal, spatial = factors(json.loads(config.read_text()))
    return Positions(spec.fps or (_saved(spec)["fps"] if spec.is_student else None) or spec.row.fps, temporal, spatial)


def _saved(spec: Settings) -> Mapping[str, Any]:
    """What a student's directory says that it was trained with."""
    return read(Path(str(spec.path)) / STUDENT)


def factors(config: Mapping[str, Any]) -> tuple[int, int]:
    """By how much a VAE shrinks frames and sides. Each says it in its own way."""
    import diffusers
    from accelerate import init_empty_weights

    cls: Any = getattr(diffusers, config["_class_name"])
    with init_empty_weights(include_buffers=False):
        vae = cls.from_config(config)

    def said(kind: str) -> Any:
        names = f"{kind}_compression_ratio", f"scale_factor_{kind}"
        return vars(vae).get(names[0]) or next((vae.config[name] for name in names if vae.config.get(name)), None)

    side = int(said("spatial") or 2 ** (len(config["block_out_channels"]) - 1))
    return int(said("temporal") or 1), side * folded(vae)


def folded(vae: Any) -> int:
    """p where p × p latents of a VAE are one of its pipeline, with a batch norm over these; 1 elsewhere."""
    return int(vae.config["patch_size"][0]) if "batch_norm_eps" in vae.config else 1


def scheduler_of(spec: Settings) -> Any:
    """The directory's own, or of the kind that the family has."""
    import diffusers

    row, kind = spec.row, getattr(diffusers, spec.row.scheduler)
    config = {} if spec.path is None else read(fetch(spec.path) / "scheduler" / "scheduler_config.json")
    if config:
        return getattr(diffusers, config["_class_name"]).from_config(config)
    return kind(**row.schedule, **({} if row.vp else {"shift": spec.shift}))


def schedule_of(spec: Settings, scheduler: Any = None) -> vp.Schedule | None:
    """Of a variance-preserving teacher; by default with the scheduler of `spec`."""
    if not (known := spec.row.predictions):
        return None
    scheduler, where = scheduler or scheduler_of(spec), spec.path or spec.family
    if (said := scheduler.config.prediction_type) not in known:
        raise ValueError(f"{where}: its scheduler has prediction_type = {said!r}: must be {listed(known)}")
    try:
        return vp.Schedule(vp.table(scheduler.alphas_cumprod), said)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; its scheduler has prediction_type = {said!r}") from error
