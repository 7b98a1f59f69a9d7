"""The one exception that stands for a mistake of the person at the keyboard rather than of the program."""


class UserError(Exception):
    """A wrong option, file or environment. The message is one line: what was wrong, where, and what would be right.

    Command lines print it as `error: ...` and exit with status 2; library users catch it like any exception.
    """
