"""The continued-pretraining trainer: a recipe comes in, and a trained model with its measurements goes out.

Each room is a folder whose `__init__.py` tells its story. A file imports only from lower floors, or from
rooms before its own: `recipe`, `storage` and `machine` at the bottom; `mixer` and `scheduler`, which
decide; `model` and `engine`, which compute; `metrics`, `checkpoint` and `evaluation`, which record; then
`plan` and `run`; `report`, `study` and `cli` on top.
"""

__version__ = "0.1.0"
