"""pytest --flowmap-check NAME, in any directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import flowmap.plugins
from flowmap.plugins import PluginError
from tests.toys import Toy, ToyFlowMap


class Breaks(ToyFlowMap):
    def chunks(self, frames: int) -> tuple[int, ...]:
        return (1,)


KNOWN = {"toy": Toy(), "broken": Toy(network=Breaks)}


@pytest.fixture(autouse=True)
def known_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    def backbone(name: str) -> Toy:
        if name not in KNOWN:
            raise PluginError(f"no plugin knows the backbone {name!r}: give one of {', '.join(KNOWN)}")
        return KNOWN[name]

    monkeypatch.setattr(flowmap.plugins, "backbone", backbone)


QUICK = ("-k", "chunks or value or snapshot", "-p", "no:cacheprovider")


def test_the_kit_runs_in_an_empty_directory(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--flowmap-check", "toy", "-rs", *QUICK)
    result.assert_outcomes(passed=2, skipped=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["SKIPPED * all frames are generated in one chunk"])


def test_a_check_that_fails_says_what_is_wrong_and_why_it_matters(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--flowmap-check", "broken", "-k", "chunks")
    result.assert_outcomes(failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*broken::check_chunks_cover_the_frames: chunks(4) = (1,): must sum to 4",
            "*why it matters: Frames that no chunk makes would be missing from every sample.",
        ]
    )


def test_several_backbones_can_be_checked_and_tests_beside_them_are_left_out(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_mine="def test_chunks():\n    assert False\n")
    result = pytester.runpytest_inprocess("--flowmap-check", "toy", "--flowmap-check", "broken", "-v", "-k", "chunks")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*toy::check_chunks_cover_the_frames*PASSED*"])


def test_tests_whose_paths_are_given_run_too(pytester: pytest.Pytester) -> None:
    path = pytester.makepyfile(test_mine="def test_chunks():\n    pass\n")
    pytester.runpytest_inprocess("--flowmap-check", "toy", str(path), "-k", "chunks").assert_outcomes(passed=2)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--flowmap-check", "tyo")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--flowmap-check tyo: no plugin knows the backbone 'tyo': give one of toy, broken*"])


def test_without_the_option_nothing_is_added(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_mine="def test_chunks():\n    pass\n")
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_an_installed_backbone_is_found_from_a_fresh_process_in_an_empty_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--flowmap-check", "wan21", "-q", "-k", "the_spec_is_a_value"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("spec", [Toy()])
def test_a_check_that_is_called_in_a_test_is_skipped_where_it_does_not_apply(
    spec: Toy, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(
        test_mine="""
        from flowmap.testing import parametrize_with_backbone_checks
        from tests.toys import Toy

        @parametrize_with_backbone_checks([Toy()])
        def test_conformance(spec, check):
            check(spec)
        """
    )
    pytester.runpytest_inprocess("-k", "chunks or snapshot").assert_outcomes(passed=1, skipped=1)
