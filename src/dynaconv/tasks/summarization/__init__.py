"""Summarization: documents to summaries, as Wu et al. 2019 (section 4.4) do it."""
