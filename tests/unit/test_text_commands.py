"""The commands that read text: what a shell hands them, and what their answers say of names and records."""

import json
import os
import subprocess
import sys

import pytest
import runs

from trainer.cli import build_parser, main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    "words",
    [
        ["data", "prepare", "--input", "", "--tokenizer", "t", "--out", "o"],
        ["data", "prepare", "--input", "i", "--tokenizer", "", "--out", "o"],
        ["data", "prepare", "--input", "i", "--tokenizer", "t", "--out", ""],
        ["vocab", "train", "--input", "i", "--size", "300", "--out", ""],
        ["vocab", "extend", "--base", "", "--add", "a", "--out", "o"],
        ["vocab", "report", "--tokenizer", "t", "--text", ""],
        ["model", "extend", "--base", "b", "--tokenizer", "t", "--out", ""],
        ["export", "", "--out", "o"],
        ["eval", "m", "--data", ""],
        ["train", ""],
    ],
)
def test_an_empty_path_is_not_the_working_folder(words, tmp_path, monkeypatch, capsys):
    """It is what a shell makes of a variable that is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "an empty path; is a variable of the shell unset?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "limit"), [("1000", 1000), ("1e3", 1000), ("1%", "1/100"), ("0.05", "1/20"), ("1", 1), ("0", 0)]
)
def test_max_rejects_is_a_number_or_a_share(text, limit):
    words = ["data", "prepare", "--input", "i", "--tokenizer", "t", "--out", "o", "--max-rejects", text]
    asked = build_parser().parse_args(words)
    assert str(asked.max_rejects) == str(limit)
    assert isinstance(asked.max_rejects, int) == isinstance(limit, int)


@pytest.mark.parametrize("text", ["-1", "1.5", "200%", "many"])
def test_max_rejects_that_are_neither_are_refused(text, capsys):
    words = ["data", "prepare", "--input", "i", "--tokenizer", "t", "--out", "o", f"--max-rejects={text}"]
    with pytest.raises(SystemExit):
        build_parser().parse_args(words)
    assert "argument --max-rejects: " in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", "gbk:strict"])
def test_an_answer_is_shown_whatever_the_names_and_the_terminal(data, tmp_path, encoding):
    """The names as unzip leaves those of an archive that was packed on a Chinese Windows."""
    folder = tmp_path / os.fsdecode("水浒传".encode("gbk"))
    folder.mkdir()
    (folder / os.fsdecode("第一回😀".encode("gb18030") + b".jsonl")).write_text('{"text": "a the"}\nbroken\n')
    out = tmp_path / os.fsdecode("传".encode("gbk"))
    common = ["--tokenizer", str(data / "tokenizer")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for words in (
        ["vocab", "report", *common, "--text", str(folder)],
        ["data", "prepare", *common, "--input", str(folder), "--out", str(out), "--max-rejects", "1"],
        ["data", "inspect", str(out)],
        ["data", "inspect", str(tmp_path / os.fsdecode(b"\xb4"))],
    ):
        for form in ([], ["--json"]):
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "import sys; from trainer.cli import main; sys.exit(main())",
                    *words,
                    *form,
                ],
                env=environment,
                capture_output=True,
                check=False,
            )
            assert b"Traceback" not in done.stderr
            if words[-1].endswith("\udcb4"):
                assert done.returncode == 2
            else:
                assert done.returncode in (0, 1), done.stderr  # 1: a guarantee of the report is broken
                told = done.stdout.decode(encoding.split(":")[0])
                if form:
                    json.loads(told)


def test_eval_of_an_empty_shard_is_refused_before_the_model_is_opened(data, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a the\n")
    common = ["--tokenizer", str(data / "tokenizer"), "--workers", "1"]
    words = ["--input", str(tmp_path / "a.txt"), "--out", str(tmp_path / "a"), "--validation", "0.0001%"]
    assert main(["data", "prepare", *common, *words]) == 0
    assert main(["eval", "no-model", "--data", str(tmp_path / "a-validation"), str(data / "en")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--data: '{tmp_path}/a-validation' has 0 token(s), none to score; " in line
