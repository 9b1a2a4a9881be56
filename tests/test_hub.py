r"""To the Hub and back, over HTTP with the real client: what is pushed, three ways to load it, and what goes wrong."""

import ast
import json
import pickle
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_client import Failure
from hub_server import upload
from safetensors.torch import save_file
from tiny import quiet, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "spaces_demo" / "checkpoints" / "ddpm-vlb-digits"
REPOSITORY = "your-name/ddpm-vlb-digits"
PIPELINE = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "pipeline.py",
    "README.md",
}
OF_A_REPORT = {"report.json", ".eval_results/ddpm-vlb.yaml", "terms.png", "samples.png"}
LOAD = "from ddpm_vlb import VLBDDPMPipeline; pipe = VLBDDPMPipeline.from_pretrained(name)\n"
OPEN = LOAD.replace("name", "folder")
SCORE = """
import torch
pipe.set_progress_bar_config(disable=True)
x = torch.arange(128).reshape(2, 1, 8, 8).remainder(17).to(torch.uint8)
steps = min(6, pipe.scheduler.config.num_train_timesteps)
out = pipe.evaluate_nll(x, generator=torch.Generator().manual_seed(0), num_inference_steps=steps)
result = [out.bits_per_dim.tolist(), out.prior.tolist(), out.transitions.tolist(), out.decoder.tolist()]
"""
REMOTE = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(name, custom_pipeline=name, trust_remote_code=True)
"""
SAMPLE = """
import torch
pipe.set_progress_bar_config(disable=True)
images = pipe(2, generator=torch.Generator().manual_seed(0), num_inference_steps=30, output_type="np").images
result = images.tolist()
"""


@pytest.fixture(autouse=True)
def no_faults(hub):
    yield
    hub.faults.clear()
    hub.token = None


@pytest.fixture
def folder(tmp_path):
    quiet(VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(20, num_pixel_levels=17))).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="module")
def shipped(hub, client):
    done = client.command("push", DIGITS, REPOSITORY)
    assert done.returncode == 0, done.stderr[-3000:]
    return hub.repositories[REPOSITORY].files


# What is pushed.


def test_the_repository_contains_what_it_should_and_nothing_else(shipped):
    assert set(shipped) == PIPELINE | OF_A_REPORT
    assert (
        shipped["unet/diffusion_pytorch_model.safetensors"]
        == (DIGITS / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    card, report = shipped["README.md"].decode(), json.loads(shipped["report.json"])
    assert f'VLBDDPMPipeline.from_pretrained("{REPOSITORY}")' in card and report["config"]["checkpoint"] == REPOSITORY
    assert f"**{report['bits_per_dim']:.4f} bits/dim**" in card and "![Samples](samples.png)" in card
    for name, content in shipped.items():
        assert str(ROOT).encode() not in content, name
        assert not name.endswith(".json") or b"_name_or_path" not in content, name
    from ddpm_vlb.hub.cards import check_card

    check_card(card, report)


def test_the_hubs_results_are_the_reports(shipped, client):
    # As the real client reads them, from the repository.
    code = """
import yaml
from huggingface_hub import hf_hub_download, parse_eval_result_entries
entries = parse_eval_result_entries(yaml.safe_load(open(hf_hub_download(name, ".eval_results/ddpm-vlb.yaml"))))
result = [vars(entry) for entry in entries]
"""
    (entry,) = client.run(code, name=REPOSITORY)
    report = json.loads(shipped["report.json"])
    assert entry["value"] == report["bits_per_dim"]
    assert (entry["dataset_id"], entry["task_id"]) == (report["config"]["dataset"], "bits_per_dim")
    notes = entry["notes"].split("; ")
    assert f"standard error {report['standard_error']!r}" in notes and entry["notes"].endswith(report["config"]["command"])
    assert f"network sha256 {report['config']['network_sha256']}" in notes
    assert entry["source_url"].endswith(f"{REPOSITORY}/blob/main/report.json")


# The three ways.


def test_all_three_ways_give_the_same(shipped, client, stranger):
    scores = client.run(LOAD + SCORE, name=REPOSITORY)
    with pytest.raises(Failure) as caught:
        stranger.run(LOAD + SCORE, name=REPOSITORY)
    assert "ModuleNotFoundError" in caught.value.kinds
    # Bit for bit.
    assert stranger.run(REMOTE + SCORE, name=REPOSITORY) == scores
    mine = np.array(client.run(LOAD + SAMPLE, name=REPOSITORY))
    assert mine.std() > 0.1
    for name in ("DDPMPipeline", "DiffusionPipeline"):
        stock = f"from diffusers import {name}; pipe = {name}.from_pretrained(name)\n"
        assert abs(np.array(stranger.run(stock + SAMPLE, name=REPOSITORY)) - mine).max() < 1e-3
    assert stranger.run(REMOTE + SAMPLE, name=REPOSITORY) == mine.tolist()


def test_a_calibration_goes_with_the_pipeline(hub, client, stranger, folder, tmp_path):
    done = client.command("calibrate", folder, "--dataset", "digits", "--evaluations", 640, "--output", tmp_path / "better")
    assert done.returncode == 0, done.stderr[-3000:]
    done = client.command("push", tmp_path / "better", "me/better")
    assert done.returncode == 0, done.stderr[-3000:]
    files = hub.repositories["me/better"].files
    assert json.loads(files["scheduler/scheduler_config.json"])["calibration"]["dataset"] == "digits"
    grid = "result = [pipe.scheduler.inference_grid(5)]\n"
    (expected,) = client.run(LOAD + grid, name=str(tmp_path / "better"))
    assert client.run(LOAD + grid, name="me/better") == stranger.run(REMOTE + grid, name="me/better") == [expected]
    assert client.run(LOAD + SCORE, name="me/better") == stranger.run(REMOTE + SCORE, name="me/better")
    assert client.run(LOAD + SCORE, name="me/better") != client.run(LOAD + SCORE, name=str(folder))


# Of a thousand steps, which take half a minute.
FEWER_STEPS = (
    ("pipe.evaluate_nll(images, ", "pipe.evaluate_nll(images, num_inference_steps=40, "),
    ("num_inference_steps=pipe.scheduler.config.num_train_timesteps", "num_inference_steps=40"),
)


@pytest.fixture(scope="module")
def example(shipped, client, stranger):
    r"""What an example of the page gives; where only comments differ from one that has run, it is not run again."""
    results = {}

    def run(way, code, result):
        code = ast.unparse(ast.parse(code))  # without comments
        for written, fewer in FEWER_STEPS:
            code = code.replace(written, fewer)
        if (way, code) not in results:
            results[way, code] = (client if way == "package" else stranger).run(f"{code}\nresult = {result}")
        return results[way, code]

    return run


@pytest.mark.parametrize("name", ["README.md", "README.ja.md"])
def test_the_examples_of_the_page(name, example):
    text = (ROOT / "ddpm_vlb" / "hub" / name).read_text()
    found = re.findall(r"<!-- hub: (\w+) -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    assert [way for way, _ in found] == ["package", "diffusers", "trusted"]
    results = ("out.bits_per_dim.tolist()", "len(images)", "out.bits_per_dim.tolist()")
    got = [example(way, code, result) for (way, code), result in zip(found, results)]
    # The same images and noise: what the package prints, a stranger's pipeline prints.
    assert got[0] == got[2] and len(got[0]) == got[1] == 4


def test_the_shell_lines_of_the_page(hub, client, folder):
    text = (ROOT / "ddpm_vlb" / "hub" / "README.md").read_text()
    commands = re.search(r"```bash\n(.*?)\n```", text, flags=re.DOTALL)[1]
    for line in commands.split("\n"):
        line = line.replace("runs/quickstart/pipeline", str(folder)).replace("your-name/", "me/shell-")
        # A network that was never trained has losses so far apart that an evaluation goes on to the largest number allowed.
        stop = ["--max-evaluations", 2000] if line.startswith("ddpm-vlb evaluate") else []
        done = client.command(*shlex.split(line)[1:], *stop)
        assert done.returncode == 0, (line, done.stderr)
    repository = hub.repositories["me/shell-ddpm-vlb-digits"]
    assert repository.private and set(repository.files) == PIPELINE | OF_A_REPORT


def test_a_pinned_revision_of_the_code_is_its_own(hub, client, stranger, folder):
    client.run(OPEN + "pipe.push_to_hub('me/pinned')", folder=str(folder))
    repository = hub.repositories["me/pinned"]
    first = repository.head
    newer = repository.files | {"pipeline.py": repository.files["pipeline.py"] + b"\nNEW = True\n"}
    repository.commit(newer, "Newer code", "main")
    load = REMOTE.replace("trust_remote", "revision=first, custom_revision=first, trust_remote")
    tell = "\nimport sys; result = hasattr(sys.modules[type(pipe).__module__], 'NEW')"
    assert stranger.run(load + tell, name="me/pinned", first=first) is False
    assert stranger.run(REMOTE + tell, name="me/pinned") is True


def test_remote_code_needs_trust(shipped, stranger):
    load = "from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained(name, custom_pipeline=name)"
    with pytest.raises(Failure, match="trust_remote_code"):
        stranger.run(load, name=REPOSITORY)


def test_a_pipeline_of_remote_code_is_saved_and_pushed_like_any_other(shipped, hub, client, stranger, tmp_path):
    save = REMOTE + "pipe.save_pretrained(folder); pipe.push_to_hub('me/from-afar')"
    stranger.run(save, name=REPOSITORY, folder=str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "pipeline.py").read_bytes() == shipped["pipeline.py"]
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
    assert set(hub.repositories["me/from-afar"].files) == PIPELINE
    assert client.run(LOAD + SCORE, name="me/from-afar") == client.run(LOAD + SCORE, name=str(tmp_path / "saved"))


# Flags of a push.


def test_flags_are_honoured(hub, client, folder):
    push = """
from ddpm_vlb import VLBDDPMPipeline
pipe = VLBDDPMPipeline.from_pretrained(folder)
result = [pipe.push_to_hub("flags", commit_message="First", private=True, token="mine")]
result += [pipe.push_to_hub("me/flags", revision="trial", commit_message="Branch")]
result += [pipe.push_to_hub("me/flags", create_pr=True, commit_message="Asked for")]
"""
    hub.requests.clear()
    addresses = client.run(push, folder=str(folder))
    repository = hub.repositories["me/flags"]
    assert repository.private and set(repository.branches) == {"main", "trial", "refs/pr/1"}
    messages = [repository.commits[repository.branches[name]][1] for name in ("main", "trial", "refs/pr/1")]
    assert messages == ["First", "Branch", "Asked for"]
    assert addresses[0].endswith(repository.head) and set(repository.files) == PIPELINE
    tokens = [authorization for method, path, _, authorization in hub.requests if "/api/models/me/flags/commit" in path]
    assert tokens == ["Bearer mine", "Bearer anything", "Bearer anything"]
    # What exists and is private stays so, and nobody is left to think otherwise.
    with pytest.raises(Failure, match="`private` must be True for 'me/flags', which exists, got False"):
        client.run(OPEN + "pipe.push_to_hub('me/flags', private=False)", folder=str(folder))


def test_saving_pushes_too_and_parts_can_be_pushed_alone(hub, client, folder, tmp_path):
    parts = (
        OPEN
        + """
pipe.save_pretrained(other, push_to_hub=True, repo_id="me/saved", commit_message="Saved", private=True)
pipe.scheduler.push_to_hub("me/scheduler", private=True, commit_message="Alone", revision="trial")
pipe.unet.push_to_hub("me/network", private=True, commit_message="Alone")
from diffusers import DDPMScheduler, UNet2DModel
from ddpm_vlb import VLBDDPMScheduler
steps = [cls.from_pretrained("me/scheduler", revision="trial").config for cls in (DDPMScheduler, VLBDDPMScheduler)]
result = [config["num_train_timesteps"] for config in steps]
assert all((a == b).all() for a, b in zip(pipe.unet.parameters(), UNet2DModel.from_pretrained("me/network").parameters()))
"""
    )
    assert client.run(parts, folder=str(folder), other=str(tmp_path / "other")) == [20, 20]
    saved, scheduler, network = (hub.repositories[f"me/{name}"] for name in ("saved", "scheduler", "network"))
    assert saved.private and scheduler.private and network.private
    assert str(folder).encode() not in network.files["config.json"] and b"/tmp" not in network.files["config.json"]
    assert set(saved.files) == PIPELINE and saved.commits[saved.head][1] == "Saved"
    files, message = scheduler.commits[scheduler.branches["trial"]]
    assert set(files) == {"scheduler_config.json", "README.md"} and message == "Alone" and not scheduler.files
    assert b'DDPMScheduler.from_pretrained("me/scheduler")' in files["README.md"]


def test_a_push_is_a_revision_and_old_ones_keep_their_numbers(hub, client, folder):
    score = LOAD.replace("name)", "name, revision=revision)") + SCORE
    repository = "me/revised"
    assert client.command("push", folder, repository).returncode == 0
    first = hub.repositories[repository].head
    before = client.run(score, name=repository, revision=first)
    report = folder / "report.json"
    done = client.command(
        "evaluate", folder, "--dataset", "digits", "--max-images", 3, "--max-evaluations", 1000, "--output", report
    )
    assert done.returncode == 0, done.stderr
    assert client.command("card", folder, "--num-images", 2).returncode == 0
    assert client.command("push", folder, repository, "--message", "With numbers").returncode == 0
    assert {"report.json", "terms.png", "samples.png"} < set(hub.repositories[repository].files)
    # Another model: what was measured of the old one goes with it.
    quiet(VLBDDPMPipeline(tiny_unet(seed=1), VLBDDPMScheduler(20, num_pixel_levels=17))).save_pretrained(folder)
    done = client.command("push", folder, repository)
    assert done.returncode == 2 and "`report` must be of this pipeline, got network_sha256" in done.stderr
    report.unlink()
    assert client.command("push", folder, repository).returncode == 0
    latest = hub.repositories[repository]
    assert set(latest.files) == PIPELINE and b"has not been scored" in latest.files["README.md"]
    assert (
        client.run(score, name=repository, revision=first) == before != client.run(score, name=repository, revision=latest.head)
    )


def test_a_report_of_another_model_is_not_pushed(hub, client, folder, tmp_path):
    code = (
        OPEN
        + """
import json, torch
from ddpm_vlb import VLBDDPMScheduler
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import make_report
pipe.set_progress_bar_config(disable=True)
out = pipe.evaluate_nll(load_images("digits", "test", 3).images, num_inference_steps=4)
report = make_report(out, dataset="digits", split="test", checkpoint="tiny")
def push(action):
    try:
        action()
        return "pushed"
    except ValueError as error:
        return str(error)
weight = next(pipe.unet.parameters())
kept = weight.detach().clone()
with torch.no_grad():
    weight.add_(1e-3)
result = [push(lambda: pipe.push_to_hub("me/lie", report=report))]
result += [push(lambda: pipe.save_pretrained(other, push_to_hub=True, repo_id="me/lie", report=report))]
with torch.no_grad():
    weight.copy_(kept)
before = pipe.scheduler
for change in ({"timestep_spacing": "trailing"}, {"clip_sample_range": 0.3}):
    pipe.scheduler = VLBDDPMScheduler.from_config(before.config, **change)
    result += [push(lambda: pipe.push_to_hub("me/lie", report=report))]
pipe.scheduler = before
result += [push(lambda: pipe.push_to_hub("me/true", report=report))]
"""
    )
    told = client.run(code, folder=str(folder), other=str(tmp_path / "other"))
    expected = ["network_sha256", "network_sha256", "inference_timesteps", "clip_sample_range"]
    assert all(f"`report` must be of this pipeline, got {key}" in text for key, text in zip(expected, told))
    assert told[-1] == "pushed" and "me/lie" not in hub.repositories and "report.json" in hub.repositories["me/true"].files


def test_a_push_checks_its_report_and_hashes_its_weights_once(hub, client, folder):
    code = (
        OPEN
        + """
import sys, torch
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import make_report
from ddpm_vlb.hub.cards import model_card
from ddpm_vlb.hub.repository import repository_files
from ddpm_vlb.model.network import network_digest
from ddpm_vlb.reports.schema import Report
pipe.set_progress_bar_config(disable=True)
out = pipe.evaluate_nll(load_images("digits", "test", 3).images, num_inference_steps=4)
report = dict(make_report(out, dataset="digits", split="test", checkpoint="tiny"))
counted = {f.__code__: 0 for f in (Report.__init__, network_digest, model_card, repository_files)}
def count(frame, event, argument):
    if event == "call" and frame.f_code in counted:
        counted[frame.f_code] += 1
result = []
for push in (lambda: pipe.push_to_hub("me/once", report=report),
             lambda: pipe.save_pretrained(folder + "-2", push_to_hub=True, repo_id="me/once", report=report)):
    counted = dict.fromkeys(counted, 0)
    sys.setprofile(count)
    try:
        push()
    finally:
        sys.setprofile(None)
    result.append(list(counted.values()))
"""
    )
    assert client.run(code, folder=str(folder)) == [[1, 1, 1, 1]] * 2
    assert {"report.json", "README.md"} < set(hub.repositories["me/once"].files)


def test_a_part_that_changes_the_model_takes_its_numbers_away(hub, client, folder):
    def scored(name):
        report = folder / "report.json"
        arguments = ("evaluate", folder, "--dataset", "digits", "--max-images", 2, "--method", "full", "--output", report)
        assert client.command(*arguments).returncode == 0 and client.command("push", folder, name).returncode == 0
        assert "report.json" in hub.repositories[name].files and b"bits/dim**" in hub.repositories[name].files["README.md"]

    scored("me/variant")
    client.run(OPEN + "pipe.push_to_hub('me/variant', variant='fp16')", folder=str(folder))
    scored("me/part")
    client.run(OPEN + "pipe.scheduler.push_to_hub('me/part', subfolder='scheduler')", folder=str(folder))
    for name in ("me/variant", "me/part"):
        files = hub.repositories[name].files
        assert "report.json" not in files and b"has not been scored" in files["README.md"]


def test_saving_leaves_no_weights_that_would_be_loaded_instead(client, folder):
    code = (
        OPEN
        + """
with torch.no_grad():
    next(pipe.unet.parameters()).add_(1.0)
pipe.save_pretrained(folder, safe_serialization=safe, **options)
again = VLBDDPMPipeline.from_pretrained(folder)
result = all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), again.unet.parameters()))
"""
    )
    for safe, options in ((False, {}), (True, {}), (True, {"max_shard_size": "20KB"}), (False, {}), (True, {})):
        assert client.run("import torch\n" + code, folder=str(folder), safe=safe, options=options), (safe, options)


def test_weights_of_another_kind_do_not_stay_beside_new_ones(hub, client, folder):
    push = OPEN + "pipe.push_to_hub('me/kinds', safe_serialization=safe, variant=variant)"
    names = {}
    for safe, variant in ((True, None), (True, "fp16"), (False, None)):
        client.run(push, folder=str(folder), safe=safe, variant=variant)
        files = hub.repositories["me/kinds"].files
        names[safe, variant] = {name.removeprefix("unet/diffusion_pytorch_model.") for name in files if "diffusion_" in name}
    assert names[True, "fp16"] == {"safetensors", "fp16.safetensors"}
    assert names[False, None] == {"bin", "fp16.safetensors"}


# Checkpoints of others.


def test_checkpoints_in_every_shape(hub, client, stranger, folder, tmp_path):
    expected = client.run(LOAD + SCORE, name=str(folder))
    for name, flat, index, suffix in [
        ("sub-folders", False, True, "safetensors"),
        ("sub-folders-bin", False, True, "bin"),
        ("flat", True, True, "safetensors"),
        ("flat-bin", True, True, "bin"),
        ("flat-no-index", True, False, "bin"),
        ("sub-folders-no-index", False, False, "safetensors"),
    ]:
        made = tmp_path / name
        unet, scheduler = (made, made) if flat else (made / "unet", made / "scheduler")
        pipe = VLBDDPMPipeline.from_pretrained(folder)
        pipe.unet.save_pretrained(unet, safe_serialization=suffix == "safetensors")
        pipe.scheduler.save_pretrained(scheduler)
        if index:
            shutil.copy(folder / "model_index.json", made)
        upload(hub, f"others/{name}", made)
        assert client.run(LOAD + SCORE, name=f"others/{name}") == expected, name
    done = client.command("evaluate", "others/flat-no-index", "--dataset", "digits", "--max-images", 2, "--method", "full")
    assert done.returncode == 0 and "bits/dim" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "scheduler", ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_schedulers_of_the_same_network_are_taken_as_its_ddpm(hub, client, folder, scheduler):
    import diffusers

    pipe = VLBDDPMPipeline.from_pretrained(folder)
    made = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    made.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", scheduler]
    (folder / "model_index.json").write_text(json.dumps(index))
    upload(hub, f"others/{scheduler}", folder)
    config = client.run(LOAD + "result = dict(pipe.scheduler.config)", name=f"others/{scheduler}")
    assert config["num_train_timesteps"] == 20 and config["variance_type"] == "fixed_small"
    assert client.run(LOAD + "result = type(pipe.scheduler).__name__", name=f"others/{scheduler}") == "VLBDDPMScheduler"


@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize("scheduler", ["LCMScheduler", "EulerDiscreteScheduler"])
def test_schedulers_of_other_models_are_refused(hub, client, folder, scheduler, has_index):
    import diffusers

    options = {"timestep_type": "continuous", "sigma_max": 80.0} if scheduler == "EulerDiscreteScheduler" else {}
    getattr(diffusers, scheduler)(**options).save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", scheduler]
    (folder / "model_index.json").write_text(json.dumps(index))
    if not has_index:
        (folder / "model_index.json").unlink()
    upload(hub, f"others/{scheduler}-{has_index}", folder)
    with pytest.raises(Failure, match=f"`scheduler` must be a DDPMScheduler, or.*got {scheduler}"):
        client.run(LOAD, name=f"others/{scheduler}-{has_index}")


def test_another_process_comes_from_the_hub_and_goes_there(hub, client, folder):
    from diffusers import FlowMatchEulerDiscreteScheduler

    FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    upload(hub, "others/flow", folder)
    pushed = LOAD + "pipe.push_to_hub('me/flow')\nresult = pipe.scheduler.config.trained_betas"
    betas = client.run(pushed, name="others/flow")
    again = LOAD + "result = pipe.scheduler.config.trained_betas, pipe.scheduler.config.noise_process['shift']"
    assert client.run(again, name="me/flow") == [betas, 2.0]


# What goes wrong.


def test_refusals_of_the_hub(hub, client, folder):
    done = client.command("evaluate", "nobody/nothing", "--dataset", "digits")
    assert done.returncode == 2 and "nobody/nothing" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    with pytest.raises(Failure, match="`subfolder` must be left out"):
        client.run(LOAD.replace("name)", "name, subfolder='b')"), name="me/any")
    done = client.command("push", folder, "me/../up")
    assert done.returncode == 2 and "`repository` must be a name on the Hub" in done.stderr
    assert client.command("push", folder, "me/private", "--private").returncode == 0
    hub.token = "another"
    before = len(hub.repositories)
    done = client.command("push", folder, "me/unauthorised")
    assert done.returncode == 2 and "401" in done.stderr and len(hub.repositories) == before and "Traceback" not in done.stderr
    done = client.command("evaluate", "me/private", "--dataset", "digits")
    assert done.returncode == 2 and "me/private" in done.stderr and "Traceback" not in done.stderr
    assert client.command("push", folder, "me/unauthorised", "--token", "another").returncode == 0
    hub.token = None
    hub.faults["POST /api/repos/create"] = [403]
    done = client.command("push", folder, "me/forbidden")
    assert done.returncode == 2 and "403" in done.stderr


def test_somebody_else_pushes_at_the_same_time(hub, client, folder):
    assert client.command("push", folder, "me/busy").returncode == 0
    repository = hub.repositories["me/busy"]
    hub.faults["POST /api/models/me/busy/commit"] = [412]
    head = repository.head
    done = client.command("push", folder, "me/busy")
    assert done.returncode == 2 and "412" in done.stderr and repository.head == head
    parents = [json.loads(body.splitlines()[0])["value"] for _, path, body, _ in hub.requests if "busy/commit" in path]
    assert parents[-1]["parentCommit"] == head


def test_connections_that_are_cut(hub, client, folder):
    def content():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content()
    # While sending: once, and for good.
    hub.faults["PUT /blobs"] = ["cut"]
    done = client.command("push", folder, "me/cut")
    assert done.returncode == 0 and set(hub.repositories["me/cut"].files) == PIPELINE, done.stderr
    head = hub.repositories["me/cut"].head
    hub.faults["POST /api/models/me/cut/commit"] = ["cut"] * 10
    done = client.command("push", folder, "me/cut")
    assert done.returncode == 2 and "`repository` must be one that can be pushed to" in done.stderr
    assert "Traceback" not in done.stderr and hub.repositories["me/cut"].head == head and content() == before
    hub.faults.clear()
    # While fetching: a cut connection is taken up again, and what failed leaves nothing behind that is taken for whole.
    weights = "GET /me/cut/resolve/.*safetensors"
    hub.faults[weights] = ["cut"]
    score = LOAD.replace("name)", "name, cache_dir=cache)") + SCORE
    expected = client.run(LOAD + SCORE, name=str(folder))
    assert client.run(score, name="me/cut", cache=str(client.cache / "once")) == expected
    hub.faults[weights] = [404] * 20
    with pytest.raises(Failure, match="`pretrained_model_name_or_path` must be a complete and readable DDPM checkpoint"):
        client.run(score, name="me/cut", cache=str(client.cache / "never"))
    hub.faults.clear()
    assert client.run(score, name="me/cut", cache=str(client.cache / "never")) == expected


def test_hostile_repositories(hub, client, folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    (client.cache / "bait.py").write_text("open('taken', 'w')\nclass Evil: pass\n")
    cases = {
        "module": {"unet": ["bait", "Evil"]},
        "popen": {"unet": ["subprocess", "Popen"]},
        "scheduler": {"scheduler": ["bait", "Evil"]},
        "pipeline": {"_class_name": ["pipeline", "Evil"]},
    }
    for name, entry in cases.items():
        hostile = tmp_path / name
        shutil.copytree(folder, hostile)
        (hostile / "pipeline.py").write_text("open('taken', 'w')\n")
        (hostile / "model_index.json").write_text(json.dumps(index | entry))
        upload(hub, f"evil/{name}", hostile)
        with pytest.raises(Failure, match="must name classes of diffusers in its index"):
            client.run(LOAD, name=f"evil/{name}")
    # Weights that are a program.
    hostile = tmp_path / "pickle"
    shutil.copytree(folder, hostile)
    (hostile / "unet" / "diffusion_pytorch_model.safetensors").unlink()

    class Program:
        def __reduce__(self):
            return open, ("taken", "w")

    (hostile / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Program()))
    upload(hub, "evil/pickle", hostile)
    with pytest.raises(Failure, match="must be a complete and readable DDPM checkpoint"):
        client.run(LOAD, name="evil/pickle")
    # Files that would be written outside of the cache.
    upload(hub, "evil/path", folder)
    repository = hub.repositories["evil/path"]
    files = {"scheduler/../../../../../../taken": b"x", "unet/../../../../../../../taken.safetensors": b"x"}
    repository.commit(repository.files | files, "escape", "main")
    with pytest.raises(Failure, match="`pretrained_model_name_or_path` must be.*cannot contain a '..' path segment"):
        client.run(LOAD, name="evil/path")
    assert not list(client.cache.parent.rglob("taken*"))
    # Folders to push with links to what is not meant to leave.
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (folder / "samples.png").symlink_to(secret)
    done = client.command("push", folder, "me/link")
    assert done.returncode == 2 and "a link to" in done.stderr and "me/link" not in hub.repositories
    (folder / "samples.png").unlink()
    save_file({"secret": torch.zeros(3)}, secret)
    (folder / "unet" / "diffusion_pytorch_model.secret.safetensors").symlink_to(secret)
    done = client.command("push", folder, "me/link")
    assert done.returncode == 2 and "a link to" in done.stderr and "me/link" not in hub.repositories
