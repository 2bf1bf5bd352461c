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

PROJECT, FILE, ARTIFACTS = "flowmap", "mlflow.db", "mlflow_artifacts"


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'flowmap-distill[{name}]'") from error


def _recipe(run: Path) -> dict[str, Any]:
    """What the run was asked for, as it says itself."""
    file = run / "recipe.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def _named(stage: int, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"stage {stage}/{name}": value for name, value in values.items()}


def _media(library: Any, file: Path) -> Any:
    """A preview as the library's own kind of value; wandb and trackio have the same names."""
    if file.suffix == ".mp4":
        return library.Video(str(file), format="mp4")
    return library.Image(str(file))


class Wandb:
    """Offline in RUN/wandb, unless WANDB_MODE or WANDB_API_KEY says otherwise: `wandb sync RUN/wandb/offline-run-*`."""

    def __init__(self, run: Path) -> None:
        self.wandb = wandb = _library("wandb")
        known = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        quiet = wandb.Settings(console="off", silent=True)
        self.run: Any = wandb.init(
            project=PROJECT, name=run.name, dir=str(run), mode=known, config=_recipe(run), settings=quiet
        )
        self.stages: set[int] = set()

    def log(self, stage: int, iteration: int, values: Mapping[str, float]) -> None:
        self._log(stage, {**values, "iteration": iteration})

    def show(self, stage: int, iteration: int, pictures: Mapping[str, Path]) -> None:
        self._log(stage, {name: self._shown(file) for name, file in pictures.items()} | {"iteration": iteration})

    def _shown(self, file: Path) -> Any:
        if file.suffix == ".txt":
            return self.wandb.Table(columns=["prompt"], data=[[line] for line in file.read_text().splitlines()])
        return _media(self.wandb, file)

    def _log(self, stage: int, values: Mapping[str, Any]) -> None:
        if stage not in self.stages:
            self.run.define_metric(f"stage {stage}/*", step_metric=f"stage {stage}/iteration")
            self.stages.add(stage)
        self.run.log(_named(stage, values))

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """In trackio's own folder on this machine, TRACKIO_DIR: `trackio show --project flowmap`."""

    def __init__(self, run: Path) -> None:
        self.trackio = _library("trackio")
        self.run: Any = self.trackio.init(project=PROJECT, name=run.name, config=_recipe(run), embed=False)

    def log(self, stage: int, iteration: int, values: Mapping[str, float]) -> None:
        self.run.log(_named(stage, {**values, "iteration": iteration}))

    def show(self, stage: int, iteration: int, pictures: Mapping[str, Path]) -> None:
        shown = {name: self._shown(file) for name, file in pictures.items()}
        self.run.log(_named(stage, {**shown, "iteration": iteration}))

    def _shown(self, file: Path) -> Any:
        return file.read_text() if file.suffix == ".txt" else _media(self.trackio, file)

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """In RUN/mlflow.db unless MLFLOW_TRACKING_URI says otherwise: `mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db`."""

    def __init__(self, run: Path) -> None:
        mlflow = _library("mlflow")
        elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
        where = elsewhere or f"sqlite:///{(run / FILE).absolute()}"
        kept = None if elsewhere else (run / ARTIFACTS).absolute().as_uri()  # by default ./mlruns, wherever one stands
        self.entities = import_module("mlflow.entities")
        self.client: Any = mlflow.MlflowClient(tracking_uri=where)
        known = self.client.get_experiment_by_name(PROJECT)
        experiment = (
            self.client.create_experiment(PROJECT, artifact_location=kept) if known is None else known.experiment_id
        )
        self.id = self.client.create_run(experiment, run_name=run.name).info.run_id

    def log(self, stage: int, iteration: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(name, value, now, iteration) for name, value in _named(stage, values).items()]
        self.client.log_batch(self.id, metrics=metrics)

    def show(self, stage: int, iteration: int, pictures: Mapping[str, Path]) -> None:
        for file in pictures.values():
            self.client.log_artifact(self.id, str(file), f"stage {stage}/{iteration:08d}")

    def close(self) -> None:
        self.client.set_terminated(self.id)
