"""Ranking models, one idea a file: a body reads a user and candidates, heads turn what it says into tasks."""
