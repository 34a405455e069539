"""A small project to label in tests: taxonomy, comparisons with markers that the fake judge reads, a recipe, and the real command line.

Every pair is about `[quality …]` and one marker for each capability, so that the truth of each label can be computed from the texts alone.
"""

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fake_judge import markers

from dmoerm.cli import main as cli
from dmoerm.data.sources import load_run_data
from dmoerm.labeling.plan import plan_labels
from dmoerm.recipe import load_recipe

KEY = "sk-planted-4242/secret"
KEY_NAME = "DMOERM_TEST_LABEL_KEY"
TAXONOMY = """
categories:
  - name: objective_qa
    description: Facts.
    capabilities:
      - {name: correctness, description: What it says is true.}
      - {name: logic, description: Each step follows.}
  - name: chitchat
    description: Talk.
    capabilities:
      - {name: empathy, description: It is kind.}
"""
CAPABILITIES = {"objective_qa": ("correctness", "logic"), "chitchat": ("empathy",), None: ()}


def text(name, quality, **points):
    """A response with its worth, in steps of 0.1, and that of the points named."""
    return " ".join(
        [f"The {name} answer.", f"[quality {quality / 10:.1f}]", *(f"[{key} {value / 10:.1f}]" for key, value in points.items())]
    )


def comparisons(count, *, category="objective_qa", responses=2):
    """The first response is preferred; on every second capability the second one is worth more."""
    rows = []
    for number in range(count):
        texts = [
            text(
                f"{place}. of {number}",
                9 - 2 * place,
                **{name: (5 + place if index % 2 else 5 - place) for index, name in enumerate(CAPABILITIES[category])},
            )
            for place in range(responses)
        ]
        row = {"id": f"c{number}", "prompt": f"Question {number}?", "responses": texts, "ranks": list(range(1, responses + 1))}
        rows.append(row | ({"category": category} if category else {}))
    return rows


@dataclass
class Project:
    """A folder with a recipe; `label` runs the command in this process, `start` in one of its own."""

    folder: Path

    @property
    def recipe(self):
        return self.folder / "recipe.yaml"

    @property
    def store(self):
        return self.folder / "labels.db"

    def label(self, *words, action="run"):
        return cli.main(["label", action, str(self.recipe), *words])

    def start(self, *words, **options):
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), KEY_NAME: KEY}
        command = [sys.executable, "-m", "dmoerm.cli.main", "label", str(self.recipe), *words]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

    def plan(self, *overrides):
        recipe = load_recipe(self.recipe, list(overrides))
        return plan_labels(recipe, load_run_data(recipe))

    def rows(self, query, *values):
        connection = sqlite3.connect(self.store)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def outcomes(self):
        return dict(self.rows("SELECT outcome, count(*) FROM attempts GROUP BY outcome"))

    def labels(self):
        """(comparison, capability) and which response is preferred, and the probability."""
        rows = [json.loads(line) for line in (self.folder / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
        return {
            (row["id"], label["capability"], label["preferred"], label["other"]): label.get("probability", 1.0)
            for row in rows
            for label in row["labels"]
        }


def project(folder, base_url, rows, **labeling):
    """Write the files of a project; `labeling` are keys of that section."""
    folder.mkdir(exist_ok=True)
    (folder / "taxonomy.yaml").write_text(TAXONOMY, encoding="utf-8")
    (folder / "comparisons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    section = {"base_url": base_url, "model": "fake-judge", "api_key_env": KEY_NAME, "canaries": False, **labeling}
    recipe = {
        "taxonomy": "taxonomy.yaml",
        "output": "model",
        "data": {"comparisons": ["comparisons.jsonl"], "test_fraction": 0.0},
        "labeling": section,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return Project(folder)


def true_labels(rows):
    """What an honest judge says of all pairs that can be asked, from the markers: (comparison, capability, preferred, other)."""
    found = set()
    for row in rows:
        responses = row["responses"]
        for first in range(len(responses)):
            for second in range(first + 1, len(responses)):
                worth = markers(f"{responses[first]} {responses[second]}")
                for name in (*CAPABILITIES[row.get("category")], "overall"):
                    difference = worth.get(name, worth["quality"])
                    if difference:
                        found.add((row["id"], name, *((first, second) if difference > 0 else (second, first))))
    return found
