"""Encoder-decoders from pairs of texts to lines of output: what translation and summarization have in common."""
