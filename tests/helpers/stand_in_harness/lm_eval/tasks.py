"""Which tasks there are."""

from pathlib import Path


class TaskManager:
    """Knows the task files of a folder, and a task whose data is not there."""

    def __init__(self, include_path, include_defaults):
        self.folder = Path(include_path)
        self.all_tasks = ["broken", *(file.stem for file in self.folder.glob("*.yaml"))]
