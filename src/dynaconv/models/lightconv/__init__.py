"""The networks of *Pay Less Attention with Lightweight and Dynamic Convolutions* (Wu et al., ICLR 2019)."""
