"""The lessons of the embedded school: one file per family of problems, and the textbook's prose."""

from __future__ import annotations
