#!/usr/bin/env bash
# Expected: mlflow-skinny, the client without a server's libraries, logs a run into a folder of this machine, as it did;
# the file store is "in maintenance mode", which sounds like no new features.
# Seen: mlflow-skinny 3.17.2 logs nowhere here by default. Its default is sqlite:///mlflow.db, for which it has no library;
# that error says that '' and 'file' are supported; with them the first call raises that the file store is in maintenance
# mode. It works where MLFLOW_ALLOW_FILE_STORE=true.
# Hurts: a training that logs to file: or to the default, at its first metric, after an update of mlflow-skinny.
# Do: install mlflow and log to sqlite:///FILE; or set the variable, and migrate the files later.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet mlflow-skinny==3.17.2
unset MLFLOW_TRACKING_URI MLFLOW_REGISTRY_URI MLFLOW_ALLOW_FILE_STORE
cat >log.py <<'PYTHON'
import sys

import mlflow

if len(sys.argv) > 1:
    mlflow.set_tracking_uri(sys.argv[1])
try:
    with mlflow.start_run():
        mlflow.log_metric("loss", 1.0, step=0)
except mlflow.MlflowException as error:
    print(f"{type(error).__name__}: {str(error)[:180]}")
    sys.exit(1)
print("logged")
PYTHON
venv/bin/python -c 'import mlflow; print("mlflow-skinny", mlflow.__version__)'
failed() { printf '%s\n' "$1" >&2; exit 1; }
told=$(venv/bin/python -W ignore log.py 2>/dev/null) && failed "changed: mlflow-skinny logs by default"
printf 'default: %s\n' "$told"
[[ $told == *"'file'"* ]] || failed "changed: the error of the default no longer says that files are supported"
told=$(venv/bin/python -W ignore log.py file:./runs 2>/dev/null) && failed "changed: mlflow-skinny logs to files"
printf 'file: %s\n' "$told"
[[ $told == *"maintenance mode"* ]] || failed "changed: files are refused for another reason"
printf 'file, MLFLOW_ALLOW_FILE_STORE=true: '
MLFLOW_ALLOW_FILE_STORE=true venv/bin/python -W ignore log.py file:./runs 2>/dev/null || failed "changed: not even so"
