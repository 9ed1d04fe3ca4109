"""What goes wrong because of what the user asked for."""


class UsageError(Exception):
    """What the user asked for cannot be; the message says what was expected and what came."""
