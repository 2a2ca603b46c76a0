"""The model: its config, its weights, its loss, and what a phase trains of it.

`architecture` reads and checks a Hugging Face config, from which `size` counts weights and FLOPs. `build`
makes the model with the weights of a base or of a seed, wrapped in `loss`, and `trainable` makes a phase's
parameter groups. `extend` writes a base with rows for new pieces.
"""
