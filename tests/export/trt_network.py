"""What `flowmap.export.trt_work` does on a GPU, on many programs and without one: JSON on stdin, from `test_tensorrt`.

An engine is built, of TensorRT-RTX, by torch-tensorrt's converters; it is not read back, which needs a GPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flowmap.export import trt_work


def main() -> None:
    with trt_work.pretended():
        import torch_tensorrt  # noqa: F401
    for asked in json.load(sys.stdin):
        answer = trt_work.support(trt_work.read(asked["program"]))
        if asked["build"]:
            answer["engine"] = built(asked)
        Path(asked["answer"]).write_text(json.dumps(answer))


def built(asked: dict[str, Any]) -> dict[str, Any]:
    from torch_tensorrt.dynamo.conversion import TRTInterpreter

    module = trt_work.lowered(trt_work.read(asked["program"]))
    interpreter = TRTInterpreter(module, trt_work.inputs(asked), compilation_settings=trt_work.settings())
    interpreter._construct_trt_network_def()
    network = interpreter.ctx.net
    engine = interpreter.builder.build_serialized_network(network, interpreter._populate_trt_builder_config())
    takes = [network.get_input(k) for k in range(network.num_inputs)]
    makes = [network.get_output(k) for k in range(network.num_outputs)]
    return {
        "bytes": 0 if engine is None else engine.nbytes,
        "inputs": [[i.dtype.name, list(i.shape)] for i in takes],
        "outputs": [[o.dtype.name, list(o.shape)] for o in makes],
    }


if __name__ == "__main__":
    main()
