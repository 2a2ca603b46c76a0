"""Chat templates reach an export in every form in which a base may have them."""

import json

import pytest
from transformers import AutoTokenizer

from tests.helpers.byte_level import save, tokenizer_json
from tests.helpers.model_tiny import CHINESE, ENGLISH, tokenizer
from tokenization.tokenizer.files import open_tokenizer
from trainer.model.tokenizer import write_tokenizer

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
OTHER = "{% for m in messages %}tool {{ m.content }}{% endfor %}"


def sentencepiece(folder):
    return tokenizer(folder, *ENGLISH, *CHINESE)


def byte_level(folder):
    return save(folder, tokenizer_json(special=("<|end|>",)))


@pytest.fixture(params=[sentencepiece, byte_level])
def base(request, tmp_path):
    return request.param(tmp_path / "base")


def written(base, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "llama"}')
    write_tokenizer(open_tokenizer(base), out, open_tokenizer(base))
    return out


def test_a_template_in_a_file_of_its_own_is_in_both_places_where_readers_look(base, tmp_path):
    (base / "chat_template.jinja").write_text(TEMPLATE)
    out = written(base, tmp_path)
    assert (out / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE


def test_a_template_among_the_settings_stays_there(base, tmp_path):
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    assert AutoTokenizer.from_pretrained(written(base, tmp_path)).chat_template == TEMPLATE


@pytest.mark.parametrize("folder", ["additional_chat_templates", "chat_templates"])
def test_further_templates_are_kept(base, tmp_path, folder):
    (base / "chat_template.jinja").write_text(TEMPLATE)
    (base / folder).mkdir()
    (base / folder / "tool_use.jinja").write_text(OTHER)
    out = written(base, tmp_path)
    assert (out / folder / "tool_use.jinja").read_text() == OTHER
    if folder == "additional_chat_templates":  # today's name
        assert AutoTokenizer.from_pretrained(out).chat_template == {"default": TEMPLATE, "tool_use": OTHER}
