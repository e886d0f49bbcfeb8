"""A store that checkouts, colleagues and clusters share (docs/store.md)."""
