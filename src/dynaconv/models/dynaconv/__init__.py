"""The decoder-only language models of Sieberling et al. 2026, and those they are compared with."""
