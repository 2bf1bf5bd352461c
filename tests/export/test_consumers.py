"""What docs/deploy.md says diffusers does with a student and with its adapters: what works, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    FirstBlockCacheConfig,
    GGUFQuantizationConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import apply_first_block_cache, apply_pyramid_attention_broadcast, apply_taylorseer_cache

from tests.export.students import CPU, F32, shaken
from tests.export.test_api import FAR_DIGITS
from tests.export.test_forms import LORA, off, ours
from tests.export.test_forms_lora import latents

FLOAT8 = torch.float8_e4m3fn
N = 4  # steps
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a student of it, and another one whose adapters are half as large."""
    out = tmp_path_factory.mktemp("made")
    base, student, half = evolve(LORA, lora=None), shaken(LORA), shaken(LORA)
    base.save(base.build(frozenset({"student"}), device=CPU, dtype=F32)["student"], out / "base")
    LORA.save(student, out / "student")
    with torch.no_grad():
        for p in half.trained().values():
            p *= 0.5
    LORA.save(half, out / "half")
    return out


def pipeline(path: Path, lora: Path | None = None) -> Any:
    pipe = AnyFlowPipeline.from_pretrained(path)
    if lora is not None:
        pipe.load_lora_weights(lora / "lora", adapter_name="student")
    return pipe


@pytest.fixture(scope="module")
def want() -> torch.Tensor:
    return ours(N)


# ---------------------------------------------------------------------- what works
def test_a_lora_is_loaded_fused_taken_out_and_exchanged(made: Path, want: torch.Tensor) -> None:
    pipe = pipeline(made / "base", made / "student")
    assert off(latents(pipe, N), want) < 1e-5
    pipe.fuse_lora()
    assert off(latents(pipe, N), want) < 1e-5
    pipe.unfuse_lora()
    assert off(latents(pipe, N), want) < 1e-5
    pipe.disable_lora()
    assert off(latents(pipe, N), want) > 0.1
    pipe.enable_lora()
    other = latents(pipeline(made / "half"), N)
    assert off(want, other) > 0.1
    pipe.load_lora_weights(made / "half" / "lora", adapter_name="student", hotswap=True)
    assert off(latents(pipe, N), other) < 1e-5
    pipe.fuse_lora()
    pipe.unload_lora_weights()  # what was fused stays
    assert off(latents(pipe, N), other) < 1e-5
    assert not any("lora" in name for name, _ in pipe.transformer.named_parameters())


def cast(pipe: Any) -> Any:
    pipe.transformer.enable_layerwise_casting(storage_dtype=FLOAT8, compute_dtype=F32)
    return pipe


@pytest.mark.parametrize("names", [("student", None), ("base", "student")])
def test_weights_are_kept_in_float8_if_a_lora_comes_first(
    names: tuple[str, str | None], made: Path, want: torch.Tensor
) -> None:
    base, lora = names
    pipe = cast(pipeline(made / base, made / lora if lora else None))
    kept = {p.dtype for name, p in pipe.transformer.named_parameters() if name.startswith("blocks.0.attn1.to_q")}
    assert FLOAT8 in kept and 1e-3 < off(latents(pipe, N), want) < 0.12


def test_a_lora_that_comes_after_the_casting_fails_at_the_call(made: Path) -> None:
    pipe = cast(pipeline(made / "base"))
    pipe.load_lora_weights(made / "student" / "lora")
    with pytest.raises(NotImplementedError, match="Float8"):
        latents(pipe, 1)


@pytest.mark.parametrize(
    "how",
    [
        {"offload_type": "leaf_level"},
        *(
            {"offload_type": "block_level", "num_blocks_per_group": 1, **d}
            for d in ({}, {"offload_to_disk_path": "disk"})
        ),
    ],
)
def test_offload_by_groups_changes_nothing(how: dict[str, Any], made: Path, tmp_path: Path) -> None:
    if "offload_to_disk_path" in how:
        how = {**how, "offload_to_disk_path": str(tmp_path / "disk")}
    pipe = pipeline(made / "student")
    plain = latents(pipe, 1)
    pipe.transformer.enable_group_offload(onload_device=CPU, offload_device=CPU, **how)
    assert torch.equal(latents(pipe, 1), plain)
    assert "offload_to_disk_path" not in how or any((tmp_path / "disk").iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it works")
@pytest.mark.parametrize("name", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_of_whole_models_needs_a_gpu(name: str, made: Path) -> None:
    with pytest.raises(RuntimeError, match="requires accelerator"):
        getattr(pipeline(made / "student"), name)()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
def test_the_transformer_compiles(made: Path, want: torch.Tensor) -> None:
    pipe = pipeline(made / "student")
    pipe.transformer = torch.compile(pipe.transformer)
    assert off(latents(pipe, N), want) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("dtype, limit", [(F32, 0.05), (torch.bfloat16, 0.1)])
def test_torchao_keeps_weights_in_8_bits(dtype: torch.dtype, limit: float, made: Path, want: torch.Tensor) -> None:
    """As docs/deploy.md has it: nothing of the embedder of r is quantised."""
    quantization = pytest.importorskip("torchao.quantization")
    from diffusers import TorchAoConfig

    config = TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=["delta_embedder"])
    transformer = AnyFlowTransformer3DModel.from_pretrained(
        made / "student", subfolder="transformer", quantization_config=config, dtype=dtype
    )
    kinds = {name: type(p.data).__name__ for name, p in transformer.named_parameters()}
    assert kinds["blocks.0.attn1.to_q.weight"] != "Tensor"
    assert kinds["condition_embedder.delta_embedder.linear_1.weight"] in ("Tensor", "Parameter")
    pipe = AnyFlowPipeline.from_pretrained(made / "student", transformer=transformer, dtype=dtype)
    assert 1e-4 < off(latents(pipe, N).float(), want) < limit


# ---------------------------------------------------------------------- what does not
def test_caches(made: Path) -> None:
    """None by `enable_cache`; of the functions behind it one fails, one does nothing, and one skips attention."""
    assert "enable_cache" not in dir(AnyFlowTransformer3DModel)
    pipe = pipeline(made / "student")
    with pytest.raises(ValueError, match="AnyFlowTransformerBlock'> not registered"):
        apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))
    plain = latents(pipe, 8)
    apply_taylorseer_cache(pipe.transformer, TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=1))
    assert torch.equal(latents(pipe, 8), plain)
    often = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=2,
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(pipe.transformer, often)
    assert off(latents(pipe, 8), plain) > 0.1


def test_single_files(made: Path) -> None:
    (file,) = (made / "student" / "transformer").glob("*.safetensors")
    assert "from_single_file" not in dir(AnyFlowPipeline)
    for more in ({}, {"quantization_config": GGUFQuantizationConfig(compute_dtype=F32)}):
        with pytest.raises(ValueError, match="is currently only compatible with"):
            AnyFlowTransformer3DModel.from_single_file(str(file), **more)


def test_the_vae_is_tiled_by_its_own_method(made: Path) -> None:
    pipe = pipeline(made / "student")
    assert "enable_vae_tiling" not in dir(pipe)
    pipe.vae.enable_tiling()
    assert pipe.vae.use_tiling


def test_a_causal_student_has_flex_attention_alone(tmp_path: Path) -> None:
    FAR_DIGITS.save(shaken(FAR_DIGITS), tmp_path)
    pipe = AnyFlowFARPipeline.from_pretrained(tmp_path)
    pipe.transformer.set_attention_backend("native")
    with pytest.raises(ValueError, match="requires the 'flex' attention backend"):
        latents(pipe, 1)
