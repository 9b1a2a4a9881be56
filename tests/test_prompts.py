r"""Prompts through a pipeline's own text encoder, in pixel space: tiny encoders of random weights, tokenizers made here."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, EDMEulerScheduler, IFPipeline
from tiny import generator, quiet, tiny_condition, tiny_unet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.cli import main
from ddpm_vlb.hub.repository import pipeline_files
from ddpm_vlb.reports.schema import read_report

WORDS = ("a", "cat", "dog")


def t5():
    torch.manual_seed(1)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in WORDS), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    encoder = T5EncoderModel(T5Config(vocab_size=10, d_model=6, d_kv=3, d_ff=8, num_layers=1, num_heads=2))
    return encoder.eval(), tokenizer


def clip():
    torch.manual_seed(1)
    letters = [*"acdogt", *(f"{letter}</w>" for letter in "acdogt")]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, "ca", "cat</w>", "do", "dog</w>"]
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    tokenizer = CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=merges, model_max_length=8)
    how = dict(vocab_size=len(tokens), hidden_size=6, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    encoder = CLIPTextModel(CLIPTextConfig(max_position_embeddings=8, eos_token_id=1, bos_token_id=0, pad_token_id=1, **how))
    return encoder.eval(), tokenizer


def deep_floyd(folder, unet=None, scheduler=None):
    r"""A folder as `IFPipeline` saves it: learned variances, embeddings that the network brings to its own width."""
    encoder, tokenizer = t5()
    unet = unet or tiny_condition(out_channels=2, cross_attention_dim=8, encoder_hid_dim=6, encoder_hid_dim_type="text_proj")
    scheduler = scheduler or DDPMScheduler(6, variance_type="learned_range")
    parts = dict(safety_checker=None, feature_extractor=None, watermarker=None, requires_safety_checker=False)
    IFPipeline(tokenizer=tokenizer, text_encoder=encoder, unet=unet, scheduler=scheduler, **parts).save_pretrained(folder)
    return folder


def with_clip(folder):
    r"""A folder of parts without an index."""
    encoder, tokenizer = clip()
    DDPMPipeline(tiny_condition(), DDPMScheduler(6)).save_pretrained(folder)
    (folder / "model_index.json").unlink()
    encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def images():
    return torch.randint(256, (3, 1, 8, 8), generator=generator(2)).to(torch.uint8)


def test_a_prompt_is_what_the_pipelines_text_encoder_makes_of_it(images, tmp_path):
    deep_floyd(tmp_path / "floyd")
    pipe = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "floyd", prompt=" A cat "))
    # diffusers' own encoding.
    stock = DiffusionPipeline.from_pretrained(tmp_path / "floyd")
    assert type(stock) is IFPipeline
    states, _ = stock.encode_prompt(" A cat ", do_classifier_free_guidance=False)
    assert torch.equal(pipe.network_kwargs["encoder_hidden_states"], states.detach()) and states.shape == (1, 77, 6)
    out = pipe.evaluate_nll(images, generator=generator())
    given = quiet(VLBDDPMPipeline(stock.unet, stock.scheduler, {"encoder_hidden_states": states.detach()}))
    assert torch.equal(given.evaluate_nll(images, generator=generator()).bits_per_dim, out.bits_per_dim)
    assert out.config["prompt"] == [" A cat "] and out.config["condition_sha256"]
    dog = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "floyd", prompt="a dog"))
    assert not torch.equal(dog.evaluate_nll(images, generator=generator()).bits_per_dim, out.bits_per_dim)


def test_a_text_encoder_of_clip_reads_prompts_of_classes(images, tmp_path):
    with_clip(tmp_path / "clip")
    pipe = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "clip", prompt=["a cat", "a dog"]))
    encoder, tokenizer = clip()
    tokens = tokenizer(["a cat", "a dog"], padding="max_length", max_length=8, return_tensors="pt").input_ids
    with torch.no_grad():
        states = encoder(tokens).last_hidden_state
    assert torch.equal(pipe.network_kwargs["encoder_hidden_states"], states)
    assert pipe.network.num_classes == 2
    out = pipe.evaluate_nll(images, generator=generator(), class_labels=[0, 1, 1])
    one = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "clip", prompt="a dog"))
    alone = one.evaluate_nll(images, generator=generator()).bits_per_dim
    assert torch.allclose(alone[1:], out.bits_per_dim[1:], rtol=1e-6) and not torch.allclose(alone[0], out.bits_per_dim[0])


def test_a_saved_model_keeps_its_text_encoder(images, tmp_path, hub, client, stranger):
    deep_floyd(tmp_path / "floyd")
    pipe = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "floyd", prompt="a cat"))
    out = pipe.evaluate_nll(images, generator=generator())
    pipe.save_pretrained(tmp_path / "own")
    again = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "own", prompt="a cat"))
    assert torch.equal(again.evaluate_nll(images, generator=generator()).bits_per_dim, out.bits_per_dim)
    # For diffusers it is the pipeline that it was, and samples.
    stock = DiffusionPipeline.from_pretrained(tmp_path / "own")
    assert type(stock) is IFPipeline and stock.scheduler.config.variance_type == "learned_range"
    stock.set_progress_bar_config(disable=True)
    assert stock("a cat", num_inference_steps=2, output_type="pt").images.shape == (1, 1, 8, 8)
    # On the Hub it is whole; without a prompt the text encoder stays there.
    client.run("from ddpm_vlb.cli import main; result = main(arguments)", arguments=["push", str(tmp_path / "own"), "me/floyd"])
    assert {"text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"} <= {
        *hub.repositories["me/floyd"].files
    }
    load = "from ddpm_vlb import VLBDDPMPipeline\npipe = VLBDDPMPipeline.from_pretrained('me/floyd', prompt=prompt)\n"
    hub.requests.clear()
    assert client.run(f"{load}result = pipe.text_parts", prompt=None) is None
    assert not any("text_encoder/model" in path for _, path, _, _ in hub.requests)
    states = client.run(f"{load}result = pipe.network_kwargs['encoder_hidden_states'].tolist()", prompt="a cat")
    assert torch.equal(torch.tensor(states), pipe.network_kwargs["encoder_hidden_states"])
    # Whoever does not have the package gets the pipeline by its remote code.
    remote = "from diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained("
    remote += "'me/floyd', custom_pipeline='me/floyd', trust_remote_code=True)\nresult = type(pipe).__name__"
    assert stranger.run(remote) == "VLBDDPMPipeline"
    assert not any(
        str(tmp_path).encode() in content for content in pipeline_files(tmp_path / "own").values() if isinstance(content, bytes)
    )


def test_the_command_line_takes_prompts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    deep_floyd(tmp_path / "floyd", unet=tiny_condition(), scheduler=EDMEulerScheduler())
    rng = np.random.default_rng(0)
    np.savez("data.npz", images=rng.integers(256, size=(18, 8, 8, 1), dtype=np.uint8), labels=np.arange(18) % 2)
    prompts = ["--prompt", "a cat", "--prompt", "a dog"]

    def command(*arguments):
        code = main([*arguments, *prompts])
        printed = capsys.readouterr()
        assert code == 0 and "Loading weights" not in printed.err, printed.err
        return printed.out

    data = ["--dataset", "data.npz"]
    command("calibrate", "floyd", *data, "--evaluations=64", "--num-timesteps=3", "--output=better")
    printed = command("evaluate", "better", *data, "--max-evaluations=120", "--output=better/report.json")
    assert "of an image given the prompt: p(x | 'a cat' or, by its class, 'a dog')" in printed
    assert read_report("better/report.json")["config"]["prompt"] == ["a cat", "a dog"]
    command("sample", "better", "--num-images=1", "--num-inference-steps=3", "--class-label=1")
    command("compare", "floyd", "better", *data, "--max-evaluations=160")
    models = json.loads((tmp_path / "comparison.json").read_text())["models"]
    assert [model["prompt"] for model in models] == [["a cat", "a dog"]] * 2
    command("classify", "better", *data, "--max-images=2", "--max-evaluations=40")
    assert json.loads((tmp_path / "classes.json").read_text())["config"]["prompt"] == ["a cat", "a dog"]
    command("card", "better", "--num-images=1")
    card = (tmp_path / "better" / "README.md").read_text()
    assert "--prompt 'a cat' --prompt 'a dog'" in card and "prompt" in card
    assert main(["card", "--check", "better"]) == 0
    # Refused before any image is read.
    for given, message in (
        ([], "`network_kwargs` must hold 'encoder_hidden_states' .* made of a `prompt`"),
        ([*prompts, "--network-kwargs", "none"], "Only one of `prompt` and `network_kwargs`"),
    ):
        capsys.readouterr()
        assert main(["evaluate", "better", *data, *given, "--output=other.json"]) == 2
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("prompt", [3, [], ["a cat", None], {"a cat"}])
def test_what_is_no_prompt_is_refused(prompt, tmp_path):
    with pytest.raises(ValueError, match="`prompt` must be a text, or a list of one for each class, got"):
        VLBDDPMPipeline.from_pretrained(tmp_path, prompt=prompt)


def test_prompts_without_use_are_refused(tmp_path):
    with_clip(tmp_path / "clip")
    with pytest.raises(ValueError, match="`prompt` must have at most 8 tokens, got 9 for 'a a a a a a a'"):
        VLBDDPMPipeline.from_pretrained(tmp_path / "clip", prompt="a a a a a a a")
    with pytest.raises(ValueError, match="Only one of `prompt` and `network_kwargs` may be given"):
        VLBDDPMPipeline.from_pretrained(
            tmp_path / "clip", prompt="a", network_kwargs={"encoder_hidden_states": torch.zeros(1, 2, 6)}
        )
    DDPMPipeline(tiny_unet(), DDPMScheduler(6)).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="`prompt` must be left out for a UNet2DModel, which takes none"):
        VLBDDPMPipeline.from_pretrained(tmp_path / "plain", prompt="a cat")
    DDPMPipeline(tiny_condition(), DDPMScheduler(6)).save_pretrained(tmp_path / "without")
    with pytest.raises(ValueError, match="`prompt` must go with a checkpoint that has a text_encoder and a tokenizer"):
        VLBDDPMPipeline.from_pretrained(tmp_path / "without", prompt="a cat")


def test_a_text_encoder_that_is_damaged_or_unknown_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    with_clip(tmp_path / "clip")
    weights = tmp_path / "clip" / "text_encoder" / "model.safetensors"
    whole = load_file(weights)
    lost = [name for name in whole if "layer_norm1" in name]
    save_file({name: weight for name, weight in whole.items() if name not in lost}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="must hold all weights of its text encoder, got .*layer_norm1"):
        VLBDDPMPipeline.from_pretrained(tmp_path / "clip", prompt="a cat")
    weights.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="must be a complete and readable DDPM checkpoint"):
        VLBDDPMPipeline.from_pretrained(tmp_path / "clip", prompt="a cat")
    config = tmp_path / "clip" / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["BertModel"]}))
    with pytest.raises(ValueError, match="text_encoder that is a T5EncoderModel or a CLIPTextModel, got .* with a BertModel"):
        VLBDDPMPipeline.from_pretrained(tmp_path / "clip", prompt="a cat")
    # Without a prompt nobody asks.
    assert VLBDDPMPipeline.from_pretrained(tmp_path / "clip").network_kwargs is None
