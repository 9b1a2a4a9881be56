r"""Put what was measured into the READMEs, between their markers, and the pictures beside the script that made them."""

import json
import re
import shutil
from pathlib import Path

from ddpm_vlb.evaluation import format_report

ROOT = Path(__file__).parents[2]


def main() -> None:
    runs = ROOT / "runs"
    report = json.loads((runs / "quickstart" / "report.json").read_text())
    blocks = {"quickstart": format_report(report, report["baselines"])}
    blocks |= {path.stem: path.read_text().rstrip() for path in (runs / "benchmarks").glob("*.txt")}
    for readme in (ROOT / "README.md", ROOT / "README.ja.md"):
        text = readme.read_text()
        for name, content in blocks.items():
            pattern = rf"(<!-- measured: {name} -->\n```text\n).*?(```)"
            text, count = re.subn(pattern, lambda match, c=content: f"{match[1]}{c}\n{match[2]}", text, flags=re.DOTALL)
            if count != 1:
                raise ValueError(f"{readme.name} must have one block `measured: {name}`, got {count}.")
        readme.write_text(text)
    pictures = ROOT / "training" / "pictures"
    pictures.mkdir(exist_ok=True)
    for name in ("terms.png", "samples.png", "trajectories.png"):
        shutil.copy(runs / "quickstart" / name, pictures / name)


if __name__ == "__main__":
    main()
