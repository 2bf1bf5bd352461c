"""Attention kernels against the plain one in float32: errors of output and gradients, and seconds.

python -m benchmarks.gpu_kernels --out DIR [--tiny]
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from flowmap_far import layout
from torch import Tensor
from torch.nn import attention
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from flowmap.atomic import write_text
from flowmap.kernels import PACKAGES, Kernels

from .gpu import options_of
from .large_step_report import hardware

BACKENDS = {"cudnn": "CUDNN_ATTENTION", "fa2": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "plain": "MATH"}
SIZES, TINY = (2, 12, 4096, 128), (1, 2, 24, 16)  # batch, heads, tokens, of a head
REPEATS = 5


@contextmanager
def _only(name: str, device: torch.device) -> Iterator[None]:
    """The kernel of that name and no other; a ValueError or RuntimeError where there is none."""
    if name in PACKAGES:
        Kernels(attention=name).check(device)  # type: ignore[arg-type]
        if device.type != "cuda":
            raise ValueError("needs CUDA")
        attention.activate_flash_attention_impl(name.upper())
        try:
            with attention.sdpa_kernel(attention.SDPBackend.FLASH_ATTENTION):
                yield
        finally:
            attention.restore_flash_attention_impl()
    else:
        with attention.sdpa_kernel(getattr(attention.SDPBackend, BACKENDS[name])):
            yield


def outputs(run: Callable[..., Tensor], given: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """The output, and the gradients of its product with `weights`."""
    q, k, v = (x.detach().requires_grad_() for x in given)
    out = run(q, k, v)
    out.backward(weights.to(out.dtype))
    return [out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]


def compared(
    run: Callable[..., Tensor],
    within: AbstractContextManager[None],
    given: Sequence[Tensor],
    weights: Tensor,
    exact: list[Tensor],
) -> dict[str, Any]:
    device = given[0].device

    def synchronised() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    try:
        with within:
            found = outputs(run, given, weights)
            seconds = []
            for _ in range(REPEATS):
                start = synchronised()
                outputs(run, given, weights)
                seconds.append(synchronised() - start)
    except (RuntimeError, ValueError, ImportError, NotImplementedError) as error:
        return {"outcome": "not there", "reason": str(error).splitlines()[0][:300]}
    errors = [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(found, exact, strict=True)]
    return {
        "outcome": "measured",
        "errors": dict(zip("oqkv", errors, strict=True)),
        "seconds": statistics.median(seconds),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(__doc__, lambda _: None, arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(0)
    size = TINY if options.tiny else SIZES
    *given, weights = (torch.randn(size, generator=generator, device=device).bfloat16() for _ in range(4))
    wide = [x.float() for x in given]
    with _only("plain", device):
        exact = outputs(F.scaled_dot_product_attention, wide, weights.float())
    found = {
        name: compared(F.scaled_dot_product_attention, _only(name, device), given, weights, exact)
        for name in ("plain", *(name for name in BACKENDS if name != "plain"), *PACKAGES)
    }
    pieces = layout.training((1, 1, 1, 1) if options.tiny else (4, 4, 4, 4), 3)
    tokens = (1, 4) if options.tiny else (16, 256)
    mask = layout.dense_mask(pieces, pieces, tokens, device)
    of = (*size[:2], len(mask), size[3])
    *given, weights = (torch.randn(of, generator=generator, device=device).bfloat16() for _ in range(4))

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    exact = outputs(dense, [x.float() for x in given], weights.float())
    found["a causal layout, dense mask"] = compared(dense, nullcontext(), given, weights, exact)
    if device.type == "cuda":
        blocks = layout.block_mask(pieces, pieces, tokens, device)
        flex: Any = torch.compile(flex_attention)
        run = lambda q, k, v: flex(q, k, v, block_mask=blocks)  # noqa: E731
        found["a causal layout, flex"] = compared(run, nullcontext(), given, weights, exact)
    else:
        found["a causal layout, flex"] = {"outcome": "not there", "reason": "its backward pass needs CUDA"}
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"tiny": options.tiny, "hardware": hardware(), "size": size, "type": "bfloat16", "kernels": found}
    write_text(options.out / "kernels.json", json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
