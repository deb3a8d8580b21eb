"""A short version of `make chaos`: one kill for each shape of run."""

import pytest

from chaos import SHAPES, main


@pytest.mark.fault("killed", "killed with rollouts waiting", "checkpoint half written")
def test_killed_runs_end_in_the_same_bits(capsys) -> None:
    assert main(kills=len(SHAPES), seed=7) == 0
    assert f"{len(SHAPES)} of {len(SHAPES)} ended in identical bits" in capsys.readouterr().out
