"""A one-room school for language models: textbooks, worked examples, practice, exams."""

__version__ = "0.1.0"
