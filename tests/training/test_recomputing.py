"""Selective recomputation: the numbers of full recomputation, bit for bit, and self-attention computed once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_far import Far
from flowmap_lora import Lora
from flowmap_wan21 import Wan21
from torch.utils._python_dispatch import TorchDispatchMode

from flowmap import AdamW, Stage, TensorData, recomputing
from flowmap.methods import anyflow
from flowmap.methods.flow_matching import flow_matching
from flowmap.training.loop import Trainer

CPU, ROLES = torch.device("cpu"), frozenset({"student", "teacher", "critic"})
SPECS = {
    "wan21": Wan21(text_length=2, text_tokens=2),
    "far": evolve(Far(text_length=2, text_tokens=2).tiny(), checkpointing=False),
    "ltx": Diffusers(family="ltx").tiny(),
}


class Attentions(TorchDispatchMode):
    """How often each attention is computed, by (queries, keys)."""

    def __init__(self):
        super().__init__()
        self.forward = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if "attention" in operator.name() and "backward" not in operator.name():
            self.forward[args[0].shape[-2], args[1].shape[-2]] += 1
        return operator(*args, **(kwargs or {}))


def networks(spec, checkpointing, dtype=torch.float32):
    spec = evolve(spec, lora=Lora(4, 4.0), checkpointing=checkpointing)
    return spec.build(ROLES, device=CPU, dtype=dtype)


def data(spec, batch=2):
    x, cond = spec.example(batch)
    return TensorData(x, cond, spec.null(cond))


@pytest.mark.parametrize("name", SPECS)
def test_weights_are_those_of_full_recomputation_to_the_bit(name):
    spec, trained = SPECS[name], []
    for checkpointing in (True, "selective"):
        nets = networks(spec, checkpointing, torch.bfloat16)
        for number, method in enumerate((anyflow.forward(), anyflow.on_policy(steps=(2,)))):
            trainer = Trainer(nets, Stage(method, steps=2, batch=2, optimizer=AdamW(lr=1e-3)), data(spec))
            for iteration in range(2):
                trainer.step(iteration + 2 * number)
        trained.append({f"{r}.{k}": p for r in ("student", "critic") for k, p in nets[r].trained().items()})
    full, selective = trained
    assert any(p.abs().max() > 1e-4 for k, p in full.items() if "lora_B" in k)  # something was learnt
    assert all(torch.equal(full[k], selective[k]) for k in full)


@pytest.mark.parametrize("name", SPECS)
def test_self_attention_is_computed_once(name):
    """And twice where all of a block is recomputed; the attention to fewer keys, the text, is computed again."""
    spec = SPECS[name]
    counts = {}
    for checkpointing in (False, True, "selective"):
        nets = networks(spec, checkpointing)
        trainer = Trainer(nets, Stage(flow_matching(role="student"), steps=1, batch=2), data(spec))
        with Attentions() as seen:
            trainer.step(0)
        counts[checkpointing] = seen.forward
    plain, full, selective = counts.values()
    own = {size for size in plain if size[1] >= size[0]}
    assert own and all(selective[size] == plain[size] for size in own)
    assert all(selective[size] == full[size] > plain[size] for size in plain.keys() - own)
    assert all(full[size] == 2 * plain[size] for size in own)


def test_what_is_kept_is_seen_by_the_test(monkeypatch):
    """Planted: attention is recomputed, or what is kept is of one storage for all blocks."""
    kept = recomputing.keeps
    monkeypatch.setattr(recomputing, "keeps", lambda *given, **named: False)
    with pytest.raises(AssertionError):
        test_self_attention_is_computed_once("wan21")
    monkeypatch.setattr(recomputing, "keeps", kept)
    from torch.utils import checkpoint

    once = checkpoint.create_selective_checkpoint_contexts(kept)
    monkeypatch.setattr(checkpoint, "create_selective_checkpoint_contexts", lambda keeps: once)
    with pytest.raises((AssertionError, RuntimeError)):
        test_weights_are_those_of_full_recomputation_to_the_bit("wan21")


def test_another_word_is_refused():
    with pytest.raises(ValueError, match=r"Wan21\.checkpointing = 'some': must be .*'selective'"):
        Wan21(checkpointing="some")
    with pytest.raises(ValueError, match=r"Diffusers\.checkpointing = 2"):
        Diffusers(family="ltx", checkpointing=2)
