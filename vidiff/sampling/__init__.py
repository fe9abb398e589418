"""Samplers: one loop, one pure step for each solver."""
