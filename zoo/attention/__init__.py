"""One file per backend. A new file here is found by itself: see CONTRIBUTING.md, "Add a backend"."""
