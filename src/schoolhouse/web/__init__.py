"""Pages, as they are served: no build, no request to anybody else."""

from pathlib import Path

PAGES = Path(__file__).parent
