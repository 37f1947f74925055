"""The one error of the local stack: whoever reads it is at a terminal and wants to know what to do."""


class StackError(Exception):
    """The stack cannot start or go on. The message is one sentence for a person: what, where, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
