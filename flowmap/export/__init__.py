"""Students as files that run without flowmap: one artefact for every number of steps, since t and r are inputs.

`flowmap.export(student, to, out)` writes one, `flowmap.export.load(out)` runs it. A network is traced into graphs of
tensors alone (`graph`), which a back end turns into files (`backend`, and a file for each), described by a manifest;
`verify` compares the result with the student before it is let out, and `runner` checks every call.
"""

from __future__ import annotations
