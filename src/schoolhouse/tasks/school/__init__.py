"""The embedded curriculum: one file per family of problems, and the text to pretrain on."""
