"""Texts and vocabularies come in, and a vocabulary or a report on one goes out.

`train` makes a SentencePiece vocabulary from texts, `extend` adds pieces of allowed `scripts` to a base
without changing its ids, and `report` measures a vocabulary on texts and checks its guarantees.
"""
