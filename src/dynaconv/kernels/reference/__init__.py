"""The definition of each operator in plain PyTorch."""
