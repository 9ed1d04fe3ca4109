"""Renderers of a report's files. Each loops over the sections and knows no task and no subject."""
