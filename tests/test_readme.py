r"""Every page, English and Japanese: its code runs, its commands are understood, its links lead somewhere, its twin agrees."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.cli import build_parser

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ddpm_vlb"
sys.path.insert(0, str(ROOT / "training"))

from trainer.arguments import parse_arguments  # noqa: E402

FOLDERS = ("ddpm_vlb", "training", "spaces_demo", "tests")
# Cards are made from reports, and have tests of their own.
CARDS = (ROOT / "spaces_demo" / "checkpoints", ROOT / "tests" / "reports")
FOUND = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
PAGES = sorted(str(page.relative_to(ROOT)) for page in FOUND if not any(page.is_relative_to(folder) for folder in CARDS))
ENGLISH = [page for page in PAGES if not page.endswith(".ja.md")]
WITH_TWIN = [page for page in ENGLISH if page not in ("CHANGELOG.md", "CONTRIBUTING.md")]
# What needs a running demo is tried in test_demo_server.py; what needs a Hub, in test_hub.py.
RUN_ELSEWHERE = ("spaces_demo",)


def read(page):
    return (ROOT / page).read_text()


def twin(page):
    return page.removesuffix(".md") + ".ja.md"


def blocks(page, language):
    return re.findall(rf"(?<! -->\n)```{language}\n(.*?)```", read(page), flags=re.DOTALL)


def prose(page):
    r"""A page without its blocks of code, and without a Space's front matter."""
    return re.sub(r"\A---\n.*?\n---\n|```.*?```", "", read(page), flags=re.DOTALL)


def shell_lines(page):
    return [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").split("\n")]


# What runs.


def check_primer(names):
    assert names["likelihood"] == pytest.approx(0.004) and names["log_likelihood"] == pytest.approx(-5.5215, abs=5e-5)
    assert names["density_at_zero"] == pytest.approx(0.3989, abs=5e-5)
    assert Path("gaussian.png").stat().st_size > 1000
    sampled, closed = names["sampled"], names["closed"]
    assert sampled.var() > closed.var() and abs((sampled - closed).mean()) < 5 * (sampled - closed).std() / 500**0.5
    # The same images with other noise: this network's terms vary by some per cent.
    assert names["bits_per_dim"].mean() == pytest.approx(names["out"].bits_per_dim.mean().item(), rel=0.2)


def check_evaluation(names):
    assert [round(names["snr"][t].item()) for t in (0, 50)] == [9999, 32] and round(float(names["step"])) == 72


def check_training(names):
    # What is trained is a copy: whoever goes on with the next page scores what was loaded.
    loaded = VLBDDPMPipeline.from_pretrained("runs/quickstart/pipeline").unet.state_dict()
    scored, trained = names["pipe"].unet, names["unet"].state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in scored.state_dict().items()) and not scored.training
    assert not all(torch.equal(weight, loaded[name]) for name, weight in trained.items())


CHECKS = {"ddpm_vlb/PRIMER": check_primer, "ddpm_vlb/evaluation/README": check_evaluation, "training/README": check_training}


@pytest.mark.parametrize(
    # A twin's code is the same but for its comments, as `test_both_languages_show_the_same_code_and_numbers` has it.
    "page",
    [page for page in ENGLISH if "```python" in read(page) and Path(page).parts[0] not in RUN_ELSEWHERE],
)
def test_examples_run(page, tmp_path, monkeypatch, capsys):
    r"""The Python blocks of a page in one namespace, one after the other, from what `make quickstart` leaves."""
    monkeypatch.chdir(tmp_path)
    scheduler = VLBDDPMScheduler(20, 0.003, 0.3, prediction_type="v_prediction", num_pixel_levels=17)
    VLBDDPMPipeline(tiny_unet(), scheduler).save_pretrained("runs/quickstart/pipeline")
    torch.manual_seed(0)
    namespace = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), namespace)
    CHECKS.get(page.removesuffix(".md"), lambda names: None)(namespace)
    capsys.readouterr()


def test_commands_are_understood():
    counts = {"ddpm-vlb": 0, "train": 0, "make": 0}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        for line in shell_lines(page):
            if match := re.match(r"(?:ddpm-vlb|accelerate launch -m ddpm_vlb) (.*)", line):
                counts["ddpm-vlb"] += 1
                build_parser().parse_args(shlex.split(match[1]))  # exits where it is not
            elif (match := re.search(r"training/train_vlb_ddpm\.py (.*)", line)) and "--help" not in line:
                counts["train"] += 1
                arguments = re.sub(r"--config (\S+)", rf"--config {ROOT}/\1", match[1])
                parse_arguments(shlex.split(arguments))
            elif match := re.match(r"make ([\w-]+)", line):
                counts["make"] += 1
                assert match[1] in targets, (page, line)
            for path in re.findall(r"(?:training|spaces_demo|tests)/\S+", line):
                assert (ROOT / path).exists(), (page, path)
    assert counts["ddpm-vlb"] > 30 and counts["train"] > 4 and counts["make"] > 4


# What pages told to import before the package had folders.
DOCUMENTED = {
    "": "VLBDDPMPipeline VLBDDPMScheduler",
    ".bound": "trajectory_bound transition_kl",
    ".calibration": "calibrate",
    ".comparison": "compare",
    ".data": "load_images open_images quantize stream_images",
    ".error_model": "ErrorModel",
    ".evaluation": "estimate_nll evaluate format_report make_report merge_reports",
    ".gaussians": "discretized_gaussian_log_likelihood levels_to_samples nats_to_bits_per_dim normal_kl normal_log_density",
    ".importance_weighted": "importance_weighted_nll",
    ".probability_flow": "ode_nll",
    ".rate_distortion": "progressive_decoding rate_distortion",
    ".sub_schedules": "best_sub_schedules",
}


@pytest.mark.parametrize("module, names", DOCUMENTED.items())
def test_documented_paths_stay(module, names):
    home = importlib.import_module(f"ddpm_vlb{module}")
    assert all(callable(getattr(home, name)) for name in names.split())


# Twins.


def without_comments(page):
    return [
        re.sub(r"\s*#.*", "", block) for block in re.findall(r"```(?:python|bash|text)\n(.*?)```", read(page), flags=re.DOTALL)
    ]


def test_every_page_has_its_twin():
    assert sorted(page for page in PAGES if page not in ENGLISH) == sorted(map(twin, WITH_TWIN))
    assert len(WITH_TWIN) >= 9


@pytest.mark.parametrize("page", WITH_TWIN)
def test_both_languages_show_the_same_code_and_numbers(page):
    assert without_comments(page) == without_comments(twin(page))
    for pattern in (r"\d+\.\d+|\d+(?:,\d{3})+", r"(?m)^#+ ", r"(?m)^\|", r"<!-- .*? -->"):
        found = [sorted(re.findall(pattern, prose(name))) for name in (page, twin(page))]
        assert found[0] == found[1], pattern
    english, japanese = ({target for target in links(name) if "://" not in target} for name in (page, twin(page)))
    assert english - {Path(twin(page)).name} == {link.replace(".ja.md", ".md") for link in japanese} - {Path(page).name}


@pytest.mark.parametrize("page", WITH_TWIN)
def test_both_languages_name_the_same_things(page):
    found = [set(re.findall(r"`([^`\n]+)`", prose(name))) for name in (page, twin(page))]
    assert found[0] == found[1]


# Links and tables.


def links(page):
    r"""Where a page points to, without the place on the page there; pictures of the two languages count as one."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [re.sub(r"-(en|ja)-desktop-(light|dark)", "", link.partition("#")[0]) for link in found if link[0] != "#"]


def anchors(path):
    r"""The places on a page, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        name, _, place = link.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists() and ROOT in (path, *path.parents), link
        assert not place or place in anchors(path), link
        # What goes to a Space goes without the rest of the project.
        assert not page.startswith("spaces_demo/") or ROOT / "spaces_demo" in path.parents, link


def test_the_first_page_is_short():
    for page in ("README.md", "README.ja.md"):
        assert len(read(page).split("\n")) <= 150


@pytest.mark.parametrize("page", ["README.md", "README.ja.md"])
def test_equations_are_where_the_table_says(page):
    rows = re.findall(r"\| `([\w/]+)\.py`: (.*) \|$", read(page), flags=re.MULTILINE)
    assert len(rows) >= 14
    for module, cell in rows:
        home = importlib.import_module("ddpm_vlb." + module.replace("/", "."))
        for name in re.findall(r"`([\w.]+)`", cell):
            thing = home
            for part in name.split("."):
                thing = getattr(thing, part)
            assert thing.__module__ == home.__name__, (module, name)


@pytest.mark.parametrize("page", ["ddpm_vlb/README.md", "ddpm_vlb/README.ja.md"])
def test_the_floor_plan_is_the_floor(page):
    rooms = re.findall(r"^\| \[?`([\w./]+)`", read(page), flags=re.MULTILINE)
    there = [path.name for path in PACKAGE.glob("*.py")]
    there += [f"{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()]
    assert sorted(rooms) == sorted(there)
    for name in re.findall(r"^\| \[?`(\w+)/`.*\| `(\w+\.py)`", read(page), flags=re.MULTILINE):
        assert (PACKAGE / name[0] / name[1]).is_file(), name


@pytest.mark.parametrize("page", ["ddpm_vlb/README.md", "ddpm_vlb/README.ja.md"])
def test_recipes_name_files(page):
    recipes = re.split(r"^### ", read(page), flags=re.MULTILINE)[1:]
    assert len(recipes) == 12
    for recipe in recipes:
        steps = re.findall(r"^\d\. .*?`([\w./]+)`", recipe, flags=re.MULTILINE)
        assert 1 <= len(steps) <= 4
        for name in steps:
            there = (PACKAGE / name).exists() or (ROOT / name).exists()
            assert there or "NEW" in name, name


# What was measured.


def test_measured_blocks_are_filled():
    """Every block is one that `make readme` writes, and every one that it writes is there, once in each language."""
    written = {"quickstart", *re.findall(r"\| tee runs/benchmarks/(\w+)\.txt", (ROOT / "Makefile").read_text())}
    assert len(written) > 10
    for pages in (ENGLISH, [twin(page) for page in WITH_TWIN]):
        measured = [
            block
            for page in pages
            for block in re.findall(r"<!-- measured: (\w+) -->\n```text\n(.*?)\n?```", read(page), flags=re.DOTALL)
        ]
        assert sorted(name for name, _ in measured) == sorted(written)
        assert all(len(content.split("\n")) >= 3 for _, content in measured)
    for page in ("tests/benchmarks/README.md", "tests/benchmarks/README.ja.md"):
        assert sorted(re.findall(r"^\| `(\w+)` \|", read(page), flags=re.MULTILINE)) == sorted(written)
