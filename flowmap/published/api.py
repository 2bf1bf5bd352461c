"""import_weights(file): from a file to a directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import whole, write_json
from ..model import WeightsError
from ..plugins import collect, installed, named
from .layout import Brought, Layout
from .weights import Weights, read

if TYPE_CHECKING:
    import pluggy


def import_weights(
    file: str | Path, *, base: str, out: str | Path, layout: str | None = None, pm: pluggy.PluginManager | None = None
) -> str:
    """Write the published weights in `file` as the directory `out`; a line on what it is now.

    base: the pipeline that gives text encoder, tokenizer, VAE and the size of the network. layout: a name of
    `flowmap_layouts`; None where the file itself says which. out: empty, or not there yet; it is there whole or not at
    all. A `WeightsError` for a file that cannot be read safely or does not fit, before anything is written.
    """
    file, out, pm = Path(file), Path(out), pm or installed()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out = {out}: is there already: give a directory that is empty or not there yet")
    asked: Layout | None = None if layout is None else named(pm, "flowmap_layouts", layout)
    found = read(file)
    layout, meant = (layout, asked) if layout and asked else _claimed(found, pm)
    with whole(out) as made:
        student = meant.write(found, base, made)
        if student is not None:
            write_json(made / "flowmap.json", _facts(layout, found, student))
    return f"{meant.about}; {_sampled(student)}"


def _facts(layout: str, found: Weights, student: Brought) -> dict[str, Any]:
    """What `Sampling.of` and `flowmap sample` read, and where the weights come from."""
    own, came = student.sampling, {"layout": layout, "file": found.file.name, "under": [*found.taken]}
    size = {} if student.latent is None else {"latent_shape": student.latent}
    return {"imported": came, **size, "sampler": own.kind, "guidance": own.guidance, "times": own.times}


def _sampled(student: Brought | None) -> str:
    if student is None:
        return "a diffusion model, to distil"
    own = student.sampling
    at = "" if own.times is None else f" at {', '.join(f'{t:.4g}' for t in own.times)}"
    return f"its sampler is {own.kind}{at}" + (f"; {student.note}" if student.note else "")


def _claimed(found: Weights, pm: pluggy.PluginManager) -> tuple[str, Layout]:
    layouts: Mapping[str, Layout] = collect(pm, "flowmap_layouts")
    claims = [name for name, layout in layouts.items() if layout.claims(found)]
    if len(claims) == 1:
        return claims[0], layouts[claims[0]]
    told = "\n".join(f"  {name}: {layout.about}" for name, layout in layouts.items())
    raise WeightsError(
        f"{found.file}: its tensors do not say how they are meant: say it with --layout NAME, one of\n{told}"
    )
