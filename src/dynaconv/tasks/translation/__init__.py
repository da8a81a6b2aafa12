"""Machine translation with the networks of the 2019 paper."""
