"""What a person trains. Each task is a package: a recipe, a corpus, a training script and an evaluation."""

TASKS = ("translation", "summarization", "language_modelling")
