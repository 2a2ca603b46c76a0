"""The page of findings: every study, with its verdicts as they fall."""

from tests.helpers import studies
from trainer.study.findings import findings_page

REPLAY = {
    "replay-0": [(3.00, 2.00), (3.02, 2.01), (2.99, 1.99)],
    "replay-1": [(2.40, 2.01), (2.41, 2.02), (2.39, 2.00)],
    "replay-5": [(2.25, 2.02), (2.26, 2.03), (2.24, 2.01)],
    "replay-10": [(2.30, 2.03), (2.31, 2.04), (2.29, 2.02)],  # more than with 5 %
    "replay-25": [(2.10, 2.07), (2.11, 2.08), (2.09, 2.06)],
    "replay-50": [(2.02, 2.15), (2.03, 2.16), (2.01, 2.14)],
}


def test_every_study_is_there_with_what_it_says_for_and_against_the_papers(tmp_path):
    studies.write_study(tmp_path / "replay", "replay", REPLAY)
    studies.write_study(tmp_path / "restore", "restore", {"exact": [(2.0, 2.1)], "constant": [(2.0, 2.2)]})
    page = findings_page([tmp_path / "replay", tmp_path / "restore"], "2 CPU cores")
    assert "20 scored models of 205k tokens, 3 seeds, 2 CPU cores." in page
    assert "6 findings: 3 × *not decided*, 2 × *holds*, 1 × *does not hold*." in page
    assert "| The more is replayed, the less is forgotten | `replay` | **does not hold** |" in page
    assert (
        "**does not hold**: The more is replayed, the less is forgotten. Forgetting: replay-5 less replay-10"
        in page
    )
    assert "| forgetting: replay-5 less replay-10 | -0.0500 [" in page
    assert "A resume without the optimizer's moments ends worse. The arm optimizer-reset is missing." in page
    assert "below 15M a study shows signs" in page
    assert "## restore: What does each wrong resume cost?" in page
    assert "| replay-0 | 3 | 3.0033 [" in page
