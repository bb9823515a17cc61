"""Signals of value: how close a conversation is to examples, or to a corpus, that the user names."""
