"""How threads wait for one another."""

from __future__ import annotations

import os
import sys


def wait_passively(console: bool) -> None:
    """Start the program again with threads that sleep while they wait, where nobody has said how they should.

    By default they spin. With another busy process on the same two cores that made the quickstart's network six to
    twenty times slower, and the setting is read once, when torch is loaded. Called from Python (`console` False), and
    elsewhere than on Linux, this does nothing.
    """
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    if console and sys.platform == "linux" and not chosen:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
