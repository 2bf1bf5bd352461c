"""flowmap import: weights that others published, as a directory."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from .command import Command
from .errors import UsageError


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a .safetensors, or a .pt of which tensors alone are read")
    parser.add_argument(
        "--base",
        required=True,
        metavar="DIR",
        help="the pipeline of the same size, a directory or hub id: text encoder, tokenizer and VAE are taken from it",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a directory that is empty or not there yet")
    told = "how the file is meant, a name from `flowmap plugins`; needed where the file does not say"
    parser.add_argument("--layout", metavar="NAME", help=told)


def run(options: Namespace) -> None:
    from ..published.api import import_weights

    try:
        told = import_weights(options.file, base=options.base, out=options.out, layout=options.layout)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(f"{options.out}: {told}")


COMMAND = Command(
    "import",
    "bring weights that others published",
    "flowmap import self_forcing_dmd.pt --base models/Wan2.1-T2V-1.3B-Diffusers --out models/self_forcing",
    run,
    arguments,
)
