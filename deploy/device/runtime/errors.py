"""The runtime's error, and the first line of a library's."""


class DeployError(ValueError):
    """An unusable model file or picture; one sentence names it and says why."""


def without_code(where: object, error: Exception) -> DeployError:
    """Return the error for a file of weights whose network's own code is missing here."""
    return DeployError(
        f"{where}: the file has the weights; their network's code, which is a module of its own, "
        f"must be importable here: {error}"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text (libraries append pages), or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
