r"""Put what was measured into the pages, between their markers, and the pictures beside the script that made them.

A block stands once in an English page, and once in that page's Japanese twin.
"""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

from ddpm_vlb.evaluation import format_report

ROOT = Path(__file__).parents[2]
FOLDERS = ("ddpm_vlb", "training", "spaces_demo", "tests")


def main() -> None:
    runs = ROOT / "runs"
    report = json.loads((runs / "quickstart" / "report.json").read_text())
    blocks = {"quickstart": format_report(report, report["baselines"])}
    blocks |= {path.stem: path.read_text().rstrip() for path in (runs / "benchmarks").glob("*.txt")}
    counts: Counter[tuple[str, bool]] = Counter()
    texts = {}
    for page in (*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))):
        texts[page] = page.read_text()
        for name, content in blocks.items():
            pattern = rf"(<!-- measured: {name} -->\n```text\n).*?(```)"
            filled = re.subn(pattern, lambda match, c=content: f"{match[1]}{c}\n{match[2]}", texts[page], flags=re.DOTALL)
            texts[page] = filled[0]
            counts[name, page.name.endswith(".ja.md")] += filled[1]
    for name in blocks:
        for language, count in (("English", counts[name, False]), ("Japanese", counts[name, True])):
            if count != 1:
                raise ValueError(f"The {language} pages must have one block `measured: {name}`, got {count}.")
    for page, text in texts.items():
        if text != page.read_text():
            page.write_text(text)
    pictures = ROOT / "training" / "pictures"
    pictures.mkdir(exist_ok=True)
    for name in ("terms.png", "samples.png", "trajectories.png"):
        shutil.copy(runs / "quickstart" / name, pictures / name)
    shutil.copy(runs / "benchmarks" / "codec.png", ROOT / "ddpm_vlb" / "codec" / "rate.png")
    shutil.copy(runs / "benchmarks" / "classify.png", ROOT / "ddpm_vlb" / "evaluation" / "classify.png")


if __name__ == "__main__":
    main()
