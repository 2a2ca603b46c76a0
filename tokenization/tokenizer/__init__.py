"""A tokenizer's directory comes in, and exact token ids go out.

`files` opens it: the pieces with the `added` tokens, and the `fingerprint` of all that decides ids;
`settings` has its other fields, and `byte_level` knows bytes without a piece. `hf_json` translates a
SentencePiece model to `tokenizer.json` and back, and `directory` writes both. `engines` wraps the libraries
that encode; `encoder` chooses the fastest that agrees with the reference on `hard_lines`, and `proof` does so
for transformers. `decoder` turns ids into text again.
"""
