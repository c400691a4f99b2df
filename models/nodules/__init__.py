"""Lung nodules at about 1 mm: candidates by shape, a small network that judges them, an outline of what is kept."""
