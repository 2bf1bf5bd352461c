"""Builds one engine: JSON on stdin, from `tensorrt_rtx`. A program of its own, so that a crash is an exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    import tensorrt_rtx as trt

    asked: dict[str, Any] = json.load(sys.stdin)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse_from_file(asked["onnx"]):
        sys.exit("; ".join(str(parser.get_error(k)) for k in range(parser.num_errors)) or "the ONNX file is refused")
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(asked["capabilities"])
    for k, name in enumerate(asked["capabilities"]):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{name.replace('.', '')}"), k)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32
    for flag in asked["flags"]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if asked["shapes"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in asked["shapes"].items():
            profile.set_shape(name, least, usual, most)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        sys.exit("the builder gave up")
    Path(asked["engine"]).write_bytes(engine)


if __name__ == "__main__":
    main()
