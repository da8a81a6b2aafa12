"""Associative recall: does a filter that depends on the token help to look things up?"""
