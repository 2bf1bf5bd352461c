"""flowmap.export: what is written, what is refused, and that what comes back is the student."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import AnyFlowFARPipeline, AnyFlowPipeline
from flowmap_digits import TINY_WAN
from flowmap_far import Far
from flowmap_wan.graph import OneChunk
from flowmap_wan.spec import TINY
from flowmap_wan21 import Wan21

import flowmap
from flowmap import FlowMap, sample
from flowmap.export import errors, onnx
from flowmap.export.errors import ExportError
from flowmap.export.manifest import Manifest
from flowmap.export.runner import Transformer
from flowmap.export.spec import Target
from tests.export.students import CAUSAL_FIXED, CPU, F32, FIXED, ONE, shaken, student
from tests.toys import Toy

SIZES: Mapping[str, Any] = {**FIXED.dims}
SMALL: Mapping[str, Any] = {
    "lora": None,
    "pretrained": False,  # the digits' text encoder and VAE, one layer of random weights
    "config": {**TINY, "num_layers": 1, "text_dim": 32},
    "text_tokens": 12,
    "shift": 1.0,
}
DIGITS, FAR_DIGITS = Wan21(TINY_WAN, **SMALL), Far(TINY_WAN, **SMALL, partition=(1,) * 5)
VIDEO = {"height": 32, "width": 32, "num_frames": 9, "output_type": "latent"}
LATENT = {"frames": 5, "height": 8, "width": 8, "text": 512}
PROMPT = "a three moving left slowly"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    u, _, _ = student("fixed")
    flowmap.export(u, "torch-export", out, sizes=SIZES)
    return out


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """One that may be damaged."""
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_what_is_written(exported: Path) -> None:
    assert {p.name for p in exported.iterdir()} == {"manifest.json", "one_chunk.pt2", "parity.json", "latency.json"}
    manifest = Manifest.read(exported)
    assert (manifest.to, manifest.family, manifest.precision) == ("torch-export", "wan", "float32")
    assert set(manifest.files) == {"one_chunk.pt2", "parity.json", "latency.json"}
    assert manifest.versions["torch"] == torch.__version__ and len(manifest.weights) == 64
    found = json.loads((exported / "parity.json").read_text())
    assert found["worst"]["error"] <= 1e-5 and {m["what"] for m in found["measured"]} >= {"1 step", "4 steps"}
    assert set(json.loads((exported / "latency.json").read_text())["seconds"]) == {"eager", "torch-export"}
    assert [p.name for p in exported.parent.iterdir()] == ["out"]


def test_it_is_the_student_again(exported: Path) -> None:
    u, family, asked = student("fixed")
    z, cond = family.example(u, asked.usual(), flowmap.Rng.seeded(3))
    again = flowmap.export.flow_map(exported)
    for steps in (1, 2, 8):
        torch.testing.assert_close(sample(again, z, cond, steps), sample(u, z, cond, steps), atol=2e-5, rtol=1e-4)


def test_the_program_runs_with_torch_alone(exported: Path, tmp_path: Path) -> None:
    """Where neither flowmap nor the libraries of the network can be imported."""
    u, family, asked = student("fixed")
    z, cond = family.example(u, asked.usual(), flowmap.Rng.seeded(4))
    t, r = torch.tensor([0.9, 0.4]), torch.tensor([0.3, 0.4])
    torch.save((z, *(1000 * s[:, None].expand(2, 3).contiguous() for s in (t, r)), cond["text"]), tmp_path / "in")
    file = exported / "one_chunk.pt2"
    code = f"""
import sys
for name in ("flowmap", "flowmap_wan", "diffusers", "transformers", "peft"):
    sys.modules[name] = None
import torch
u = torch.export.load({str(file)!r}).module()
torch.save(u(*torch.load({str(tmp_path / "in")!r})), {str(tmp_path / "out")!r})
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "out"), u(z, t, r, cond), atol=2e-5, rtol=1e-4)


def pipeline(spec: Wan21 | Far, folder: Path) -> tuple[Any, FlowMap]:
    u = shaken(spec)
    spec.save(u, folder)
    pipe = (AnyFlowPipeline if isinstance(spec, Wan21) else AnyFlowFARPipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe, u


def test_it_takes_the_transformers_place_in_a_pipeline(tmp_path: Path) -> None:
    pipe, _ = pipeline(DIGITS, tmp_path / "student")
    noise = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = {n: pipe(PROMPT, num_inference_steps=n, latents=noise, **VIDEO).frames for n in (1, 4, 32)}
    flowmap.export(tmp_path / "student", "torch-export", tmp_path / "out", sizes=LATENT, rollouts=(1,))
    pipe.transformer = flowmap.export.load(tmp_path / "out")
    assert isinstance(pipe.transformer, Transformer)
    for n, wanted in theirs.items():
        ours = pipe(PROMPT, num_inference_steps=n, latents=noise, **VIDEO).frames
        torch.testing.assert_close(ours, wanted, atol=2e-4, rtol=1e-3)


def test_a_causal_one_too(tmp_path: Path) -> None:
    pipe, u = pipeline(FAR_DIGITS, tmp_path / "student")
    noise = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    flowmap.export(u, "torch-export", tmp_path / "out", sizes={**LATENT, "text": 12}, rollouts=(1,))
    pipe.transformer = flowmap.export.load(tmp_path / "out")
    ours = pipe(PROMPT, num_inference_steps=3, latents=noise, max_sequence_length=12, **VIDEO).frames.transpose(1, 2)
    cond = FAR_DIGITS.codec(device=CPU, dtype=F32).encode_prompts([PROMPT])
    wanted = sample(u, noise.transpose(1, 2), cond, 3, shift=1.0)
    torch.testing.assert_close(ours, wanted, atol=2e-4, rtol=1e-3)
    with pytest.raises(ExportError, match="use_kv_cache = False"):
        pipe(PROMPT, num_inference_steps=1, latents=noise, use_kv_cache=False, max_sequence_length=12, **VIDEO)


def test_adapters_are_fused_in(tmp_path: Path) -> None:
    spec = Wan21().tiny()
    u = shaken(spec)
    assert flowmap.export(u, "torch-export", tmp_path / "out", sizes=SIZES).worst < 1e-5
    z, c = spec.example(2)
    before, t = u(z, torch.tensor([0.9, 0.4]), torch.tensor([0.2, 0.1]), c), torch.tensor([0.9, 0.4])
    torch.testing.assert_close(u(z, t, torch.tensor([0.2, 0.1]), c), before, atol=0, rtol=0)  # and u is as it was


def test_any_network_that_traces_cleanly_needs_an_example_alone(tmp_path: Path) -> None:
    spec = Toy()
    u = spec.build(frozenset({"student"}), device=CPU, dtype=F32)["student"].eval().requires_grad_(False)
    with pytest.raises(ExportError, match="no plugin knows how to export a ToyFlowMap: give an example"):
        flowmap.export(u, "torch-export", tmp_path / "out")
    z, c = spec.example(3)
    z = z[:, : u.chunks(z.shape[1])[0]]
    assert not (tmp_path / "out").exists()
    made = flowmap.export(OneAtOnce(u), "torch-export", tmp_path / "out", example=(z, c), sizes={"batch": (1, 2, 4)})
    assert made.worst < 1e-5
    ts = torch.tensor([0.9, 0.5, 0.3]), torch.tensor([0.1, 0.5, 0.0])
    again = flowmap.export.load(tmp_path / "out")
    torch.testing.assert_close(again(z, *ts, c), u(z, *ts, c), atol=1e-5, rtol=1e-5)


class OneAtOnce(FlowMap):
    """A third party's network."""

    def __init__(self, u: FlowMap) -> None:
        super().__init__()
        self.u = u

    def forward(self, z: Any, t: Any, r: Any, cond: Any, cache: Any = None) -> Any:
        return self.u(z, t, r, cond)


# ---------------------------------------------------------------------- what goes wrong
def test_an_export_that_is_not_the_student_fails_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = OneChunk.forward
    monkeypatch.setattr(OneChunk, "forward", lambda self, z, t, r, text: forward(self, z, t, t, text))  # r is not read
    u, _, _ = student("fixed")
    with pytest.raises(errors.ParityError, match=r"not the student: .* at batch 2, .* at most 1e-05"):
        flowmap.export(u, "torch-export", tmp_path / "out", sizes=SIZES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError("odd")])
def test_one_that_is_broken_off_leaves_nothing(error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any) -> None:
        raise error

    monkeypatch.setattr(torch.export, "save", stop)
    with pytest.raises((ExportError, KeyboardInterrupt)):
        flowmap.export(student("fixed")[0], "torch-export", tmp_path / "out", sizes=SIZES)
    assert not list(tmp_path.iterdir())


def test_one_that_is_killed_cannot_be_loaded(copy: Path) -> None:
    """The manifest is written last, and the directory has another name until then."""
    (copy / "manifest.json").unlink()
    with pytest.raises(errors.NotExportedError, match=r"has no manifest\.json, so it is no finished export"):
        flowmap.export.load(copy)
    with pytest.raises(FileNotFoundError, match="there is no such directory"):
        flowmap.export.load(copy / "never")


def _change(copy: Path, **changes: Any) -> None:
    file = copy / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes, kind, said",
    [
        ({"schema": 2}, errors.VersionError, "of schema 2, this flowmap reads up to 1"),
        ({"target": {"device": "cuda", "capabilities": []}}, errors.NoDeviceError, "CUDA GPU, and there is none"),
        (
            {"machine": {"processor": "riscv64", "instructions": "DEFAULT"}},
            errors.ArchitectureError,
            "for riscv64 processors with DEFAULT, the one here is",
        ),
        (
            {"to": "aoti", "versions": {"torch": "2.3.0"}},
            errors.VersionError,
            "made with torch 2.3.0 and is tied to it",
        ),
        ({"family": "martian"}, ExportError, "of a 'martian' network, which no plugin here knows"),
        ({"graphs": [{}]}, errors.CorruptError, "cannot be read"),
    ],
    ids=["schema", "no GPU", "processor", "release", "family", "garbage"],
)
def test_an_export_for_another_place(
    copy: Path, changes: dict[str, Any], kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "load", lambda *args: pytest.fail("the back end was asked"))
    _change(copy, **changes)
    with pytest.raises(kind, match=said):
        flowmap.export.load(copy)


def test_a_gpu_of_another_architecture(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _change(copy, target={"device": "cuda", "capabilities": ["8.9"]}, machine={"capability": "8.9"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    with pytest.raises(errors.ArchitectureError, match=r"for compute capability 8\.9, the GPU here \(a GPU\) has 9\.0"):
        flowmap.export.load(copy)


def test_a_file_that_is_not_the_one(copy: Path) -> None:
    file = copy / "one_chunk.pt2"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(errors.CorruptError, match=r"one_chunk\.pt2: its content is not what was written"):
        flowmap.export.load(copy)
    file.write_bytes(data[:-1])
    with pytest.raises(errors.CorruptError, match=f"has {len(data) - 1} bytes, {len(data)} were written"):
        flowmap.export.load(copy)
    file.unlink()
    with pytest.raises(errors.CorruptError, match="is missing"):
        flowmap.export.load(copy)


def call(z: Any = None, t: Any = None, text: Any = None) -> tuple[Any, ...]:
    shape = (2, 3, 4, 4, 6)
    z, t = torch.zeros(shape) if z is None else z, torch.zeros(2, 3) if t is None else t
    return z, t, torch.zeros(2, 3), torch.zeros(2, 16, 16) if text is None else text


@pytest.mark.parametrize(
    "args, kind, said",
    [
        (call(z=torch.zeros(2, 3, 4, 4, 8)), errors.ProfileError, "width of hidden_states is 8: .* made for 6"),
        (call(z=torch.zeros(2, 3, 5, 4, 6)), errors.ProfileError, "dimension 2 of hidden_states is 5: must be 4"),
        (call(z=torch.zeros(2, 3, 4)), errors.ProfileError, r"hidden_states is \(2, 3, 4\): must have 5 dimensions"),
        (call(t=torch.zeros(2, 2)), errors.ProfileError, "frames of timestep is 2: .* made for 3"),
        (call(text=torch.zeros(2, 16, 16, dtype=torch.float16)), errors.DtypeError, "is float16: must be float32"),
        (call(z=torch.zeros(2, 3, 4, 4, 6, device="meta")), errors.DtypeError, "is on meta: this export runs on cpu"),
    ],
    ids=["width", "channels", "rank", "frames", "dtype", "device"],
)
def test_a_call_that_does_not_fit(exported: Path, args: Any, kind: type[Exception], said: str) -> None:
    transformer = flowmap.export.load(exported)
    transformer.call = evolve(transformer.call, call=lambda *args: pytest.fail("the back end was asked"))
    with pytest.raises(kind, match=said):
        transformer(*args)


def test_whatever_a_built_call_raises_is_an_export_error(exported: Path) -> None:
    transformer = flowmap.export.load(exported)

    def odd(*args: Any) -> Any:
        raise AssertionError("Guard failed: s62 >= 2")

    transformer.call = evolve(transformer.call, call=odd)
    with pytest.raises(errors.BackendError, match="one_chunk cannot be called: AssertionError: Guard failed: s62 >= 2"):
        transformer(*call())


def test_whatever_a_tracer_raises_is_an_export_error(tmp_path: Path) -> None:
    z = torch.randn(2, 3)
    with pytest.raises(errors.BackendError, match="'one_chunk' cannot be traced: "):
        flowmap.export(Untraceable(), "torch-export", tmp_path / "out", example=(z, {}))
    assert not list(tmp_path.iterdir())


class Untraceable(FlowMap):
    """Python looks at a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, z: Any, t: Any, r: Any, cond: Any, cache: Any = None) -> Any:
        return self.linear(z) if t.sum() > r.sum() else z


@pytest.mark.slow
def test_one_patch_alone_is_a_size_like_any_other(tmp_path: Path) -> None:
    """And so is the least frame, batch and text of a range, which are no patches."""
    sizes = {"batch": (1, 2, 2), "frames": (1, 2, 2), "height": 2, "width": 4, "text": (1, 2, 2)}
    made = flowmap.export(student("fixed")[0], "torch-export", tmp_path / "out", sizes=sizes, rollouts=(1,))
    assert made.worst < 1e-5


def test_a_condition_that_is_not_read(exported: Path) -> None:
    u, (z, c) = flowmap.export.flow_map(exported), ONE.example(2)
    t = torch.ones(2)
    with pytest.raises(flowmap.model.ConditionError, match=r"was given \['image'\]"):
        u(z, t, t, {**c, "image": z})
    with pytest.raises(flowmap.model.ConditionError, match="reads 'text'"):
        u(z, t, t, {})


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"to": "onxx"}, "no exporter is called 'onxx': .* did you mean 'onnx'"),
        ({"precision": "fp4"}, "precision = 'fp4': must be one of float32, bf16, fp16"),
        ({"sizes": {"heigth": 4}}, "sizes has 'heigth': this network has batch, frames, height, width, text"),
        ({"sizes": {"batch": 1}}, "no size is given for frames, height, width"),
        ({"sizes": {**SIZES, "height": 5}}, "height = 5: must be multiples of 2"),
        ({"sizes": {**SIZES, "batch": (1, 1, 1), "frames": (3, 2, 1)}}, "3:2:1: must not decrease"),
        ({"sizes": {**SIZES, "height": (2, 4, 8)}}, "height = 2:4:8: .* one patch, 2, .* start the range at 4, or"),
        ({"sizes": {**SIZES, "frames": (1, 1, 1), "batch": (1, 1, 1), "width": (2, 2, 2), "text": 17}}, "text = 17: "),
        ({"rollouts": 8}, "rollouts = 8: must be numbers of steps, such as"),
        ({"rollouts": ()}, "rollouts = .*: must be numbers of steps"),
        ({"rollouts": (4, 0)}, "rollouts = .*: must be numbers of steps"),
        ({"rollouts": (4,), "check": False}, "rollouts was given with check=False"),
        ({"compile": True, "check": False}, "compile was given with check=False"),
        ({"to": "aoti", "target": Target("cuda")}, "built on one, and there is none here"),
    ],
)
def test_what_cannot_be_asked_for(
    asked: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "export", lambda *args, **more: pytest.fail("it has begun"))
    with pytest.raises(Exception, match=said):
        flowmap.export(student("fixed")[0], out=tmp_path / "out", **{"to": "torch-export", "sizes": SIZES, **asked})
    assert not list(tmp_path.iterdir())


def test_a_missing_package_and_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(
        errors.MissingPackageError, match=r"onnxscript is not installed: pip install 'flowmap-distill\[onnx\]'"
    ):
        flowmap.export(student("fixed")[0], "onnx", tmp_path / "out", sizes=SIZES)


def test_what_is_there_is_not_written_over(exported: Path) -> None:
    with pytest.raises(ExportError, match="is there already"):
        flowmap.export(student("fixed")[0], "torch-export", exported, sizes=SIZES)


def test_a_causal_student_with_no_past_at_full_resolution(tmp_path: Path) -> None:
    """Two graphs: what is finished is compressed at once."""
    u, family, _ = student("causal small past")
    report = flowmap.export(u, "torch-export", tmp_path / "out", sizes={**CAUSAL_FIXED.dims, "frames": 7}, check=False)
    assert [graph.name for graph in report.manifest.graphs] == ["step", "compress"]
    again = flowmap.export.flow_map(tmp_path / "out")
    z, cond = family.example(u, {**CAUSAL_FIXED.usual(), "frames": 7}, flowmap.Rng.seeded(3))
    torch.testing.assert_close(sample(again, z, cond, 3), sample(u, z, cond, 3), atol=2e-5, rtol=1e-4)


def test_every_kind_of_error_is_a_sentence_of_its_own() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, ExportError)]
    assert len(kinds) == len({k.__doc__ for k in kinds}) and all(k.__doc__ for k in kinds)


@pytest.mark.parametrize("kind", ["fixed", "causal fixed"])
def test_a_network_of_another_precision_is_not_said_to_be_of_this_one(kind: str, tmp_path: Path) -> None:
    u, _, sizes = student(kind)
    with pytest.raises(ExportError, match="precision = bfloat16, and the network that was given computes in float32"):
        flowmap.export(u, "torch-export", tmp_path / "out", sizes=dict(sizes.dims), precision="bf16")
    assert not (tmp_path / "out").exists()


def test_a_narrow_network_with_exact_times_is_not_said_to_be_of_float32(tmp_path: Path) -> None:
    """Some of its products are of float32, and that is not what people call it."""
    DIGITS.save(shaken(DIGITS), tmp_path / "student")
    narrow = DIGITS.load(tmp_path / "student", device=CPU, dtype=torch.bfloat16)
    assert {p.dtype for p in narrow.parameters()} == {torch.float32, torch.bfloat16}
    with pytest.raises(ExportError, match="precision = float32, and the network that was given computes in bfloat16"):
        flowmap.export(narrow, "torch-export", tmp_path / "out", sizes=LATENT)
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_what_the_weights_are(exported: Path) -> None:
    manifest, (u, _, _) = Manifest.read(exported), student("fixed")
    assert {*manifest.numbers} == {"float32"}
    assert manifest.numbers["float32"] >= sum(p.numel() for p in u.parameters())
    assert manifest.latent == (3, 4, 4, 6) and manifest.sampler == {
        "shift": 1.0,
        "sampler": "flow_map",
        "built_in_guidance": 1.0,
    }
