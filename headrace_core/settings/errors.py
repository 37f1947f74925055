"""The one error of a start that cannot succeed: whoever reads it has just changed a file or a variable."""


class SettingsError(Exception):
    """A setting is unknown or wrong. `message` is one sentence: where, which one, its value, what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
