"""distill(recipe, data) -> the distilled student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Literal, get_args

import pluggy
import torch
from attrs import evolve

from . import asked, atomic, plugins, report, students, validators
from ._types import Role
from .data import Data, Source, fingerprint
from .doing import heard
from .evaluation import Previews, QualityCurve, card, rounding, watching
from .experts import too_few_steps
from .faults import reach
from .kernels import Kernels
from .kind import kind
from .mistaken import INDEX
from .model import FlowMap, Sampling
from .module import ModuleSpec
from .objectives import Networks, equipped
from .observers import Observers, tracked
from .planning.operations import operations
from .recipe import Precision, Recipe, RecipeError, digest, not_data
from .resume import ended, grown, newest
from .training import stages
from .training.final_hash import final_hash
from .training.interrupt import Interrupt
from .training.ranks import fits
from .training.ranks.agree import rank, ranks
from .training.ranks.context_groups import unsplit
from .training.ranks.distributed import Distribution, first_alone, joined, own_device, world
from .training.ranks.networks import precision, spread, trained, whole_again
from .training.ranks.offload import stays
from .training.ranks.sharding import whole
from .training.run import Run, primary
from .training.saving import MINUTES, Saves
from .training.store import checkpoint
from .training.store.directory import aside, older, others

NAMES: Mapping[torch.dtype, Precision] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
TYPES = {name: dtype for dtype, name in NAMES.items()}


def distill(
    recipe: Recipe,
    data: Data | Source | None = None,
    *,
    out: str | Path | None = None,
    resume: Literal["auto", "never", "restart"] = "auto",
    save_minutes: float = MINUTES,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    distribution: Distribution = Distribution(),  # noqa: B008, a frozen value
    kernels: Kernels = Kernels(),  # noqa: B008
    track: Sequence[str] = (),
    previews: Previews | None = Previews(),  # noqa: B008, a frozen value
    profile: int = 0,
    pm: pluggy.PluginManager | None = None,
) -> FlowMap:
    """Run the stages of `recipe` and return the student (or the teacher, of a recipe without a student), averaged.

    data: the batches, or where they come from; the recipe's own by default. out: a run directory, which gets
    checkpoints, metrics, `student/` and what the recipe's evaluation writes; None keeps nothing and judges nothing.
    resume: "auto" goes on from the newest checkpoint in `out`, if it is of the same recipe, whose `steps` may have
    grown; a finished run is only evaluated, if that is missing. "never" refuses a directory with checkpoints, "restart"
    moves what is there to `OUT.old-1` (2, 3, ...) and starts anew. track: where records go besides `metrics.jsonl`, by
    the names of `flowmap_trackers`.
    save_minutes: between checkpoints; the end of every stage is one, too. device: CUDA where there is one. dtype:
    in place of the recipe's. kernels: with which programs this machine computes: compiled, in TF32, which attention.
    previews: samples while training goes on, into `out`; None is none. profile: of so many iterations, after the first
    two, the first process writes a trace, `profile/trace.json`.

    Under torchrun all processes share the work, as `distribution` says, and the result is that of one process. Once it
    is trained the first writes and judges the student, and returns it whole; what the others return is their part of
    it, not to be called.
    """
    path = None if out is None else Path(out)
    if dtype is not None and dtype in NAMES:
        recipe = evolve(recipe, dtype=NAMES[dtype])  # so that a run goes on with what it began with
    dtype = dtype or precision(recipe)
    device = own_device(device)
    source = _check(recipe, data, path, resume, dtype, distribution, kernels, device)
    pm, judged = pm or plugins.installed(), path is not None and recipe.evaluation is not None
    makers = plugins.trackers(track, pm)
    moved = aside(path) if path is not None and resume == "restart" and primary() else None
    with (
        Run(path, profile=profile) as run,
        Interrupt(at_once=True),
        heard(run.doing),
        Observers(pm, tracked(makers, path if run.speaks else None, run.note)) as watch,
    ):
        with joined(distribution, device):
            key = digest(recipe)
            found, before = (None, ()) if path is None else newest(recipe, path)
            run.start(recipe)  # a directory of another recipe stays as it is
            if moved is not None:
                run.say(f"what was in {path} is in {moved} now")
            for passed in () if found is None else found.passed:
                run.note(passed)
            run.say(_begins(recipe, path, found))
            watching.expect(run, recipe, previews, path)
            for change in () if found is None else grown(recipe, found, before):
                run.say(change)
            if (shifts := recipe.shifts) and shifts != {recipe.backbone.shift}:
                run.say(_shifted(recipe, shifts))
            nets = spread(recipe, device, dtype, distribution, judged=judged)
            learning, batches, probe = nets, None, None
            if path is not None and found is not None and _finished(recipe, found, path):
                weights = trained(recipe, nets)
                checkpoint.restore_weights(found, weights, averaged=True)
            else:
                batches = _batches(recipe, source, path, device)
                run.data_is(fingerprint(batches), resumed=found is not None)
                sample = batches.batch([0]).to(device)
                fits.check(nets, sample, _made_of(recipe), type(batches).__name__, distribution.seconds)
                if wrong := asked.compressed(recipe.stages, nets, sample.x.shape[1]):
                    raise RecipeError(*wrong)
                if recipe.equips:
                    learning = equipped(nets, recipe.equips, sample)
                weights = trained(recipe, learning)
                saves = Saves(None if path is None else path / "checkpoints", key, run, save_minutes)
                probe = None if path is None else rounding.Probe.of(nets[recipe.result], recipe.result, sample)
                watch.previews = watching.Watch.of(previews, recipe, batches, device, path, run.say, run.note)
                run.operations, context = operations(recipe, batches, ranks(), device), distribution.context
                with kernels.running(learning, device, run.say):
                    stages.train(recipe, learning, batches, run, watch, saves, device, weights, found, context)
            # without what objectives equip: a finished run is opened again without it, and says the same
            sha256 = final_hash(trained(recipe, nets)) if path is not None else None
            alone, first = ranks() == 1, rank() == 0
            tensors = {} if alone else {role: whole(of) for role, of in weights.items()}
        if not first:
            return nets[recipe.result]
        if not alone:
            del learning, nets, weights  # the networks in pieces make way for those that are written
            nets = whole_again(recipe, tensors, device, dtype, judged=judged)
        if recipe.result == "student":
            nets["student"].guidance, nets["student"].history_noise = card.guidance(recipe), card.history_noise(recipe)
        if path is not None:
            if batches is not None and probe is not None:
                if found is not None and not ended(recipe, found):
                    older(path, run.say)
                _write(recipe, nets[recipe.result], batches, probe, run, path / recipe.result, pm)
            _judge(recipe, nets, run, path)
            watch.judged(path, len(recipe.stages), recipe.stages[-1].steps)
            run.finished(sha256, card.saved(path / recipe.result))
            report.quietly(path, run.say)
        return nets[recipe.result]


def evaluate(
    recipe: Recipe,
    run: str | Path,
    *,
    out: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Judge the student in the run directory `run` anew, as `recipe.evaluation` says; write to `out`, or to `run`.

    run: or a student's own directory, such as one that `flowmap import` wrote, with the recipe of another; it is judged
    on the grid of its own shift, and has no model card of ours.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = precision(recipe) if dtype is None else dtype
    recipe, student = judging(recipe, Path(run)), _student(Path(run))
    if recipe.evaluation is None:
        raise RecipeError(f"the recipe {recipe.name or recipe.backbone} has no evaluation: give one that has")
    if few := too_few_steps(recipe.backbone.boundary, recipe.evaluation):
        raise RecipeError(*few)
    if card.known(student) is None:
        raise RecipeError(f"{run}: there is no finished student in it; `flowmap distill` makes one")
    if "teacher" in recipe.trains:
        raise RecipeError(
            "the recipe fine-tunes its teacher, which only the run's checkpoints have: remove "
            f"{Path(run) / 'evaluation'}, and distill again with the same `out`"
        )
    teacher = frozenset[Role]({"teacher"})
    nets: dict[Role, FlowMap] = dict(recipe.spec_of("teacher").build(teacher, device=device, dtype=dtype))
    nets["student"] = recipe.backbone.load(student, device=device, dtype=dtype)
    recipe.evaluation(nets, recipe.backbone, Path(out or run))
    if out is None and student != Path(run):
        card.write(recipe, Path(run))


def judging(recipe: Recipe, run: Path) -> Recipe:
    """`recipe` as it judges what is in `run`: itself of a run; of a student's own directory, that student beside its
    teacher, sampled in the one way that it was made for, if it was."""
    if (student := _student(run)) != run or (isinstance(recipe.backbone, ModuleSpec) and kind(run) == "weights"):
        return recipe
    evaluation, own = recipe.evaluation, Sampling.of(student)
    if isinstance(evaluation, QualityCurve) and own.kind in ("consistency", "phased"):
        evaluation = evolve(evaluation, own=own)
    spec = plugins.backbone(str(student))
    return evolve(recipe, backbone=spec, teacher=recipe.spec_of("teacher"), evaluation=evaluation)


def _student(run: Path) -> Path:
    """The student of a run; itself, where `run` is a student's own directory."""
    return run if (run / INDEX).is_file() or (run / card.FILE).is_file() else run / "student"


def _batches(recipe: Recipe, source: Data | Source, path: Path | None, device: torch.device) -> Data:
    if not isinstance(source, Source):
        return source
    return first_alone(lambda: source.load(recipe.backbone, path, device=device))


def _made_of(recipe: Recipe) -> Mapping[Role, str]:
    """Where each network comes from, for messages."""
    specs = {role: recipe.spec_of(role) for role in get_args(Role)}
    return {role: f"{type(spec).__name__}, {spec.about().name}" for role, spec in specs.items()}


def _write(
    recipe: Recipe, u: FlowMap, batches: Data, probe: rounding.Probe, run: Run, final: Path, pm: pluggy.PluginManager
) -> None:
    """The result, with what a sampler must know of it and what its type loses."""
    spec, lost = recipe.spec_of(recipe.result), None
    with atomic.whole(final) as made:
        spec.save(u, made, dtype=TYPES[recipe.save_dtype])
        reach("student.saved")
        try:
            lost = rounding.measure(spec, u, probe, outputs=recipe.offload is None)
        except (RuntimeError, ValueError, OSError, MemoryError) as error:  # no reason to lose what was trained
            run.note(f"what bfloat16 loses was not measured: {type(error).__name__}: {error}")
        facts = card.facts(recipe, batches) | students.facts(spec, u, plugins.collect(pm, "flowmap_backbones"))
        atomic.write_json(made / card.FILE, facts | rounding.facts(recipe.save_dtype, lost))


def _judge(recipe: Recipe, nets: Networks, run: Run, path: Path) -> None:
    if recipe.evaluation is not None and not recipe.evaluation.written(path):
        run.evaluating()
        recipe.evaluation(nets, recipe.backbone, path)
    card.write(recipe, path)


def _begins(recipe: Recipe, path: Path | None, found: checkpoint.Found | None) -> str:
    """What a run is about to do, for whoever started it."""
    if path is None or found is None:
        return "preparing networks and data"
    if _finished(recipe, found, path):
        return f"{path} is trained already, and is not trained again"
    stage = recipe.stages[found.stage]
    at = f"stage {found.stage} ({stage.method.name}), {found.iteration} of {stage.steps} iterations done"
    return f"{path} goes on from its checkpoint {found.path.name}: {at}"


def _shifted(recipe: Recipe, shifts: Set[float]) -> str:
    told = validators.listed([f"{s:g}" for s in sorted(shifts)]).replace("'", "").replace(" or ", " and ")
    own = f"{recipe.backbone.shift:g}"
    return f"times are trained with shift {told}; the backbone's own, by which its student is sampled, is {own}"


def _finished(recipe: Recipe, found: checkpoint.Found, path: Path) -> bool:
    """Whether all is trained and the student written, in the type that the recipe asks for."""
    known = card.known(path / recipe.result)
    return ended(recipe, found) and known is not None and known.get("dtype", recipe.save_dtype) == recipe.save_dtype


def _check(
    recipe: Recipe,
    data: Data | Source | None,
    path: Path | None,
    resume: str,
    dtype: torch.dtype,
    distribution: Distribution,
    kernels: Kernels,
    device: torch.device,
) -> Data | Source:
    """Everything that can be known to be wrong before work starts, all of it at once."""
    wrong = [*recipe.wrong(), *unsplit(recipe, distribution.context)]
    wrong += stays(recipe, world() if distribution.shard else 1, kernels.compile)
    for check in (lambda: distribution.check(world(), [s.batch for s in recipe.stages]), lambda: kernels.check(device)):
        try:
            check()
        except ValueError as error:
            wrong.append(str(error))
    if dtype not in NAMES:
        wrong.append(f"dtype = {dtype}: must be torch.float32 or torch.bfloat16")
    if resume not in (options := ("auto", "never", "restart")):
        wrong.append(f"resume = {resume!r}: must be {validators.listed(options)}")
    source = data if data is not None else recipe.data
    if source is None:
        wrong.append("no data: give `data`, or a recipe with one, such as TensorData(x, cond, null)")
    elif (not_one := not_data("data", source)) is not None:
        wrong.append(not_one)
    if path is not None and path.exists() and not path.is_dir():
        wrong.append(f"out = {path}: is a file: must be a directory, or not exist yet")
    if path is not None and (other := others(path)) is not None:
        wrong.append(f"out = {path}: holds other things, such as {other!r}: give one that is empty or not there yet")
    if resume == "never" and path is not None and (path / "checkpoints").exists():
        wrong.append(f"resume = 'never', but {path} has checkpoints: give an empty directory, or restart")
    if wrong or source is None:
        raise RecipeError(*wrong)
    return source
