"""Language models: how well they predict text."""
