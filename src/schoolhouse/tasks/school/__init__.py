"""The school: one file per family of problems, and the synthetic text for pretraining."""
