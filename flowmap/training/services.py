"""Records for services beside TensorBoard: wandb, trackio, mlflow. Without an account they stay on this machine.

Each is an extra of the same name, `flowmap-distill[wandb]`. A value's step is its iteration in its stage.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

PROJECT, FILE = "flowmap", "mlflow.db"


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'flowmap-distill[{name}]'") from error


def _recipe(run: Path) -> dict[str, Any]:
    """What the run was asked for, as it says itself."""
    file = run / "recipe.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def _named(stage: int, values: Mapping[str, float]) -> dict[str, float]:
    return {f"stage {stage}/{name}": value for name, value in values.items()}


class Wandb:
    """Offline in RUN/wandb, unless WANDB_MODE or WANDB_API_KEY says otherwise: `wandb sync RUN/wandb/offline-run-*`."""

    def __init__(self, run: Path) -> None:
        wandb = _library("wandb")
        known = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        quiet = wandb.Settings(console="off", silent=True)
        self.run: Any = wandb.init(
            project=PROJECT, name=run.name, dir=str(run), mode=known, config=_recipe(run), settings=quiet
        )
        self.stages: set[int] = set()

    def log(self, stage: int, iteration: int, values: Mapping[str, float]) -> None:
        if stage not in self.stages:
            self.run.define_metric(f"stage {stage}/*", step_metric=f"stage {stage}/iteration")
            self.stages.add(stage)
        self.run.log(_named(stage, {**values, "iteration": iteration}))

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """In trackio's own folder on this machine, TRACKIO_DIR: `trackio show --project flowmap`."""

    def __init__(self, run: Path) -> None:
        self.run: Any = _library("trackio").init(project=PROJECT, name=run.name, config=_recipe(run), embed=False)

    def log(self, stage: int, iteration: int, values: Mapping[str, float]) -> None:
        self.run.log(_named(stage, {**values, "iteration": iteration}))

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """In RUN/mlflow.db unless MLFLOW_TRACKING_URI says otherwise: `mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db`."""

    def __init__(self, run: Path) -> None:
        mlflow = _library("mlflow")
        where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(run / FILE).absolute()}"
        self.entities = import_module("mlflow.entities")
        self.client: Any = mlflow.MlflowClient(tracking_uri=where)
        known = self.client.get_experiment_by_name(PROJECT)
        experiment = self.client.create_experiment(PROJECT) if known is None else known.experiment_id
        self.id = self.client.create_run(experiment, run_name=run.name).info.run_id

    def log(self, stage: int, iteration: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(name, value, now, iteration) for name, value in _named(stage, values).items()]
        self.client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        self.client.set_terminated(self.id)
