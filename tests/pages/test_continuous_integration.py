"""Page tests are skipped where there is no browser, but never in CI: there, a skipped one fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEST = "tests/pages/test_board_page.py::test_an_empty_folder_says_how_to_begin"


@pytest.mark.parametrize(("ci", "code", "outcome"), [("", 0, "2 skipped"), ("true", 1, "2 errors")])
def test_without_a_browser(tmp_path: Path, ci: str, code: int, outcome: str):
    """The two runs differ in nothing but CI; neither finds a browser on its PATH."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", TEST],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path), "CI": ci},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert outcome in done.stdout
    if ci:
        assert "skipped, which fails in CI" in done.stdout
        assert "no Chromium on this machine" in done.stdout
