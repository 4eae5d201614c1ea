"""Estimates of runs in a workspace: what is known of their rows (`rows`), what earlier runs measured (`history`), and
all of it put together for the page and the command line (`outlook`), kept with each run (`record`).
"""
