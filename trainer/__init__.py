"""Training of small language models and their scaling laws. Each module defines its own `TrainerError` subclass."""


class TrainerError(ValueError):
    """Base class of every error that a user of the trainer can cause; the message is one sentence with the remedy."""
