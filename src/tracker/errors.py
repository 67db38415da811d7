"""The one exception that a user is meant to read."""


class TrackerError(Exception):
    """A mistake of the user's or a failure of the surroundings, told in one line with the way to mend it.

    The command line prints the message without a traceback and exits with status 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))
