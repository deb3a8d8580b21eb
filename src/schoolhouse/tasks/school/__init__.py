"""The task `school`: one file for each family (kind of generated problems), and the synthetic text for pretraining."""
