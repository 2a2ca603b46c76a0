"""Vocabularies: trained, merged into a base's, and reported on."""
