"""`rewarm model`: grow a model to an extended vocabulary."""

from __future__ import annotations

import argparse
from typing import Any

from tokenization.errors import ExitCode
from trainer.cli.answer import print_answer
from trainer.cli.arguments import add_command, add_noun, add_overwrite, add_text, path_text, whole_number

FIRST_CHARACTERS = 100_000
"""Of each `--text`, this much is scored before and after."""


def add_model(commands: Any) -> None:
    """Add `model` and its command."""
    kinds = add_noun(commands, "model", "grow a model to an extended vocabulary")
    example = "--base llama2-7b --tokenizer llama2-zh --out llama2-7b-zh"
    extend = add_command(kinds, "extend", extend_model_command, example)
    base = "the model to extend: directory or hub id"
    extend.add_argument("--base", type=path_text, required=True, metavar="MODEL", help=base)
    tokenizer = "the base's tokenizer with new pieces, as `rewarm vocab extend` writes it"
    extend.add_argument("--tokenizer", type=path_text, required=True, metavar="DIR", help=tokenizer)
    extend.add_argument("--out", type=path_text, required=True, metavar="DIR", help="the extended model")
    rows = (
        "what the row of a new piece is: the mean of the rows of the old pieces that it is made of, "
        "the mean of all rows, or random (default: subpiece_mean)"
    )
    choices = ("subpiece_mean", "mean", "random")
    extend.add_argument("--new-rows", choices=choices, default="subpiece_mean", help=rows)
    extend.add_argument(
        "--seed", type=whole_number, default=0, metavar="N", help="seed of random rows (default: 0)"
    )
    add_overwrite(extend)
    scored = "files or folders of text whose bits per byte are shown before and after (default: none)"
    add_text(extend, "--text", nargs="*", default=[], help=scored)


def extend_model_command(args: argparse.Namespace) -> int:
    """Add embedding rows for the new pieces of a tokenizer, and compare the losses on `--text`."""
    from tokenization.disk import refuse_existing
    from tokenization.text.texts import first_texts
    from trainer.model.extend import bits_per_byte, extend_model, open_encoder
    from trainer.storage.hub import local_directory

    refuse_existing(args.out, overwrite=args.overwrite)
    base = local_directory(args.base, field="--base")
    texts, notes = first_texts(args.text, FIRST_CHARACTERS, args.text_field, args.encoding)
    if texts:
        open_encoder(base)  # fail now rather than after the model has been written
    extension = extend_model(base, args.tokenizer, args.out, args.new_rows, args.seed, args.overwrite)
    added = extension.pieces - extension.base_pieces
    lines = [
        f"{args.out}: {extension.base_pieces:,} + {added:,} pieces in {extension.rows:,} rows; a new piece "
        f"was {extension.mean_split:.2f} base tokens on average"
    ]
    losses = {}
    for path, text in texts.items():
        losses[path] = {
            name: bits_per_byte(model, text) for name, model in (("before", base), ("after", args.out))
        }
        lines.append("{}: {before:.4f} bits/byte before, {after:.4f} after".format(path, **losses[path]))
    data = {
        "rows": extension.rows,
        "pieces": extension.pieces,
        "bits_per_byte": losses,
        "notes": list(extension.lines),
        "left_out": notes,
    }
    print_answer(args, data, "\n".join([*lines, *extension.lines, *notes]))
    return ExitCode.DONE
