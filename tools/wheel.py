"A wheel carries the committed records, so that `avpapers list` and `avpapers report` work without a clone."

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

RECORDS = Path(__file__).resolve().parents[1] / "nbs" / "records"


class BuildWithRecords(build_py):
    "Copy nbs/records into the package being built; nothing is written into the source folder."

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "avpapers" / "records"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(RECORDS, target, ignore=lambda folder, names: {n for n in names if n[0] in "._"})
