"""What a person runs: training, translating, evaluating, benchmarks."""
