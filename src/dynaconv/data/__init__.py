"""Text as training sees it, in the order in which it gets there.

`sources` read named columns of text (`text`), `splits` hold some of it out, `tokenizer` learns a vocabulary, `arrays`
keep token ids in memory-mapped files, `store` keeps what was made once, and `batching` makes batches by token count.
"""
