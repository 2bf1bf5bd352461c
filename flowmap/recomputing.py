"""What a block's backward pass computes again, where its activations are not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeAlias, get_args

from . import validators

Checkpointing: TypeAlias = bool | Literal["selective"]
"""False: nothing. True: all of a block. "selective": all but the attention of tokens to as many keys or more, whose
output is kept: it is what costs most for what it takes."""

Contexts: TypeAlias = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]
"""Of `torch.utils.checkpoint.checkpoint(..., context_fn=)`: around the forward pass, and around its repetition."""

checked = validators.in_((False, True, "selective"))
"""The validator of a spec's field `checkpointing`."""

Offload: TypeAlias = Literal["weights", "inputs", "both"]
"""What is in the host's memory while it is not used: frozen weights of blocks; what backward passes need; both."""

offloaded = validators.optional(validators.in_(get_args(Offload)))
"""The validator of `Recipe.offload`."""

ATTENTION = ("scaled_dot_product", "flex_attention")
"""In the names of torch's operators that make an attention's output of queries, keys and values [..., tokens, d]."""


def contexts(checkpointing: Checkpointing, other: Contexts | None = None) -> Contexts:
    """other: of what else is to be entered, outside of these.

    What is kept is what the forward pass made, so that gradients are those of full recomputation bit for bit. It is an
    attention's output, and a number a query and head. An attention that is no operator of torch's, as in the plain
    kernel, is computed again.
    """
    from torch.utils.checkpoint import create_selective_checkpoint_contexts, noop_context_fn

    if checkpointing != "selective":
        return other or noop_context_fn
    if other is None:
        return lambda: create_selective_checkpoint_contexts(keeps)

    def both() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        outer, inner = other(), create_selective_checkpoint_contexts(keeps)
        return _nested(outer[0], inner[0]), _nested(outer[1], inner[1])

    return both


def keeps(_: Any, operator: Any, *given: Any, **named: Any) -> Any:
    """The policy: whether what `operator` gave is kept."""
    from torch.utils.checkpoint import CheckpointPolicy

    name, policy = operator.name(), CheckpointPolicy.PREFER_RECOMPUTE
    if any(part in name for part in ATTENTION) and given[1].shape[-2] >= given[0].shape[-2]:
        policy = CheckpointPolicy.MUST_SAVE
    return policy


@contextmanager
def _nested(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield
