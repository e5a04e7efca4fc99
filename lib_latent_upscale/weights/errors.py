"""What can be wrong with weights. Every message says what to do."""


class WeightsError(Exception):
    """A file of weights that cannot be used; the message says which and why."""


class MissingWeightsError(WeightsError):
    """A model of the catalogue whose file is not there; the message says how to get it."""


class FetchError(WeightsError):
    """A model that could not be downloaded; nothing but a resumable part of it was kept."""
