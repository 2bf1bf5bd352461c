"""Plans without weights, at true size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from attrs import evolve
from flowmap_wan.sizes import T2V_1_3B
from flowmap_wan21 import Wan21

from flowmap.cli import main
from flowmap.export.errors import ExportError
from flowmap.export.graph import Graph, Input, program
from flowmap.export.plan import alive, plan
from flowmap.export.spec import ShapeProfile
from tests.export.students import CAUSAL, CPU, F32, ONE, shaken
from tests.export.test_api import DIGITS

SIZES = {"frames": 21, "height": 60, "width": 104}


def test_the_true_size_is_one_clean_graph_of_that_many_weights() -> None:
    (graph,) = plan(Wan21("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"), sizes=SIZES, precision="bf16")
    d, ff, layers = 12 * 128, T2V_1_3B["ffn_dim"], T2V_1_3B["num_layers"]
    block = 8 * d * d + 2 * d * ff  # of self-attention, cross-attention, feed-forward: the matrices
    assert graph.weights == pytest.approx(2 * (layers * block + 4 * d * d + 6 * d * d + (4096 + d) * d), rel=0.01)
    assert graph.operators["aten.scaled_dot_product_attention.default"] == 2 * layers
    tokens = 21 * 30 * 52
    assert graph.activations > 4 * tokens * d  # at least the tokens, once in float32


def test_a_causal_one_has_three() -> None:
    assert [g.name for g in plan(CAUSAL, sizes={"frames": 7, "height": 8, "width": 8})] == [
        "step",
        "encode",
        "compress",
    ]


def test_adapters_are_fused_without_weights_too() -> None:
    sizes = {"frames": 3, "height": 4, "width": 4}
    assert plan(Wan21().tiny(), sizes=sizes)[0].weights == plan(ONE, sizes=sizes)[0].weights


def test_what_is_alive_at_once() -> None:
    class Chain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = x.exp()
            b = a.unsqueeze(0).sin()  # a is read through a view
            return b.cos()

    graph = Graph("chain", Chain(), (Input("x", (8,), F32),), "y")
    assert alive(program(graph, ShapeProfile({}), F32, CPU)) == 2 * 8 * 4


def test_a_student_has_the_sizes_that_it_was_trained_at(tmp_path: Path) -> None:
    """As its export has them; others, where they are asked for."""
    student = tmp_path / "run" / "student"
    DIGITS.save(shaken(DIGITS), student)
    (student / "flowmap.json").write_text(json.dumps({"latent_shape": [5, 4, 8, 8]}))
    sizes = {"frames": 5, "height": 8, "width": 8}
    assert plan(str(tmp_path / "run")) == plan(str(student)) == plan(str(student), sizes=sizes)
    more = plan(str(student), sizes={"frames": 9})
    assert more[0].activations > plan(str(student))[0].activations


def test_sizes_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match="no size is given for height, width"):
        plan(evolve(ONE), sizes={"frames": 3})
    assert main(["export", "wan21", "--plan"]) == 2
    assert "no size is given for frames, height, width" in capsys.readouterr().err
