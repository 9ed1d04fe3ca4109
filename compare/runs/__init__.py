"""One run in a process of its own: who starts and watches it, what it does, and what comes back."""
