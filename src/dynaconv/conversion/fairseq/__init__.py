"""LightConv and DynamicConv models of fairseq 0.6.1 to main, with their dictionaries and BPE codes."""
