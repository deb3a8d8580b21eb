"""Static files of the two web pages: no build step, no requests to other hosts."""

from pathlib import Path

PAGES = Path(__file__).parent
