"""The one kind of error of the trainer that a user can cause; each module has its own below it, beside its code."""


class TrainerError(ValueError):
    """Training, its data or its law cannot be had as asked; the message is the sentence that a user needs."""
