"""Files of the workspace. Below every other package."""
