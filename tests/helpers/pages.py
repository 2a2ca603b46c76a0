"""What a page of the documentation asks its reader to type."""

import re
import shlex


def lines_to_type(text: str) -> list[list[str]]:
    """Every line of the `bash` blocks of a page, as words and without its comment."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]
