"""The chain of stages in one run folder: what each reads, makes and needs."""
