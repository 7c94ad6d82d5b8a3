"""The errors flmrec raises on purpose. Each message is one sentence: what, where, what was expected, what to do."""


class FlmrecError(Exception):
    """Root of the errors whose message is meant for the person who runs the job."""

    exit_status = 1


class UsageError(FlmrecError):
    """Wrong usage, configuration or environment: nothing has been read or written yet."""

    exit_status = 2


class DataContractError(FlmrecError):
    """The data break the data contract."""

    exit_status = 3


class GateRefused(FlmrecError):
    """The new model is not good enough: yesterday's recommendations stand."""

    exit_status = 4


class TrainingError(FlmrecError):
    """A rank of the training failed; the message carries its own traceback."""
