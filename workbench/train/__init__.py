"""The trainer: `supervise` starts and watches it, `main` is the process that trains."""
