"""Tensors without data behave as tensors do, but for having none."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowmap.methods import anyflow
from flowmap.planning.counts import Ledger
from flowmap.planning.hollow import META, Hollow, HollowError, behind
from flowmap.training.loop import Trainer

from .helpers import CPU, ROLES, data, spec, stage, traced


def empty(*shape, dtype=torch.float32):
    return Hollow(torch.empty(shape, dtype=dtype, device=META))


def test_shapes_and_dtypes_are_torchs_and_a_number_is_not_another_of_its_value():
    x = empty(2, 3, dtype=torch.int64)
    assert (x + 1).dtype == torch.int64 and (x + 1.0).dtype == torch.float32 and (x == 1).dtype == torch.bool
    assert (empty(4, 3) @ empty(3, 5)).shape == (4, 5)
    assert (empty(4, 3).bfloat16() * torch.ones(3)).dtype == torch.float32  # a real tensor beside a hollow one


def test_a_view_shares_its_storage_and_a_copy_does_not():
    x = empty(4, 6)
    storages = [behind(y).untyped_storage()._cdata for y in (x, x[1:], x.t(), x.clone())]
    assert storages[0] == storages[1] == storages[2] != storages[3]


def test_what_is_real_stays_real():
    t = torch.tensor([0.5, 1.0])
    off = (t != 1.0).nonzero()[:, 0]
    assert off.tolist() == [0] and empty(2, 7)[off].shape == (1, 7)


def test_a_mask_with_values_says_how_many_it_leaves():
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert empty(2, 3, 7)[mask].shape == (3, 7) and empty(3, 7)[mask[0]].shape == (2, 7)
    assert empty(5, 2, 3)[:, mask].shape == (5, 3)
    x = empty(2, 3, 7)
    assert x.index_put((mask,), empty(3, 7)) is not x
    with pytest.raises(HollowError, match="index"):
        x[empty(2, 3, dtype=torch.bool)]


def test_a_question_of_values_is_refused_with_the_operation():
    with pytest.raises(HollowError, match="nonzero"):
        (empty(3) > 0).nonzero()


def test_gradients_arrive():
    w = torch.nn.Parameter(empty(3, 5))
    F.scaled_dot_product_attention(*(3 * (empty(1, 2, 4, 3) @ w),) * 3).sum().backward()
    assert isinstance(w.grad, Hollow) and w.grad.shape == w.shape


@pytest.mark.parametrize("of", [spec(), spec(causal=True)], ids=["bidirectional", "causal"])
def test_operations_are_those_of_a_real_step(of):
    """Counted by torch's own counter, which knows attention by its two products."""
    method = anyflow.on_policy(steps=(4,))
    trainer = Trainer(of.build(ROLES, device=CPU, dtype=torch.float32), stage(method), data())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.step(1)
    found = sum(traced(method, of).parts.values())
    assert found == pytest.approx(counter.get_total_flops(), rel=0.06)  # fused, it multiplies once more backward


def test_a_ledger_forgets_what_is_gone():
    with Ledger() as ledger:
        x = torch.zeros(1000)
        for _ in range(3):
            x = x + 1
        assert ledger.held["activations"] == 4000
        assert ledger.highest.passing() == 8000
        del x
    assert ledger.held["activations"] == 0
