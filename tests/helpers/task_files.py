"""Task files for lm-eval: a choice, a text to score, and a text to write."""

import json

CHOICE = """
task: next_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""

ROLLING = """
task: whole_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}, {{metric: word_perplexity}}]
"""

WRITING = """
task: goes_on
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{written}}}}"
generation_kwargs: {{until: ["\\n", "."], max_gen_toks: 20, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""

TASKS = {"next_word": CHOICE, "whole_text": ROLLING, "goes_on": WRITING}


def write_tasks(folder, *names, questions=None, written=""):
    """Write task files of these names, all of them, on the same questions into a folder; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [
        "the law of",
        "every year a people",
        "国家为了维护人民的",
        "what it keeps while its rulers change",
    ]
    choices = [" a", " people", " its rulers change", "权利"]
    asked = questions or [
        {"text": text, "choices": choices, "answer": place % 4, "written": written}
        for place, text in enumerate(texts)
    ]
    file = folder / "questions.json"
    file.write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    for name in names or TASKS:
        (folder / f"{name}.yaml").write_text(TASKS[name].format(file=file), encoding="utf-8")
    return folder
