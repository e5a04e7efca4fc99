"""What can go wrong in training through no fault of the code."""


class TrainingError(Exception):
    """Something that the user can put right; the message says what is wrong and what to do."""
