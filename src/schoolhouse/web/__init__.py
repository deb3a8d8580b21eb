"""The static files of the two web pages. The pages need no build step and send no requests to other hosts."""

from pathlib import Path

PAGES = Path(__file__).parent
