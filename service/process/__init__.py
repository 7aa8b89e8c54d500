"""Memory and threads of the whole process."""
