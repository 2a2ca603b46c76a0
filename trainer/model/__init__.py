"""The model: how it is built, grown, trained in parts, and how large it is."""
