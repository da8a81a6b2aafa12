"""What all tasks have in common: recipes, run folders, the trainer, checkpoints, curves, and search in batches."""
