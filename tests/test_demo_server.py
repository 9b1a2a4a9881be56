r"""The demo over HTTP, as a Space runs it: its folder alone, without the package, in a process of its own."""

import asyncio
import base64
import concurrent.futures
import functools
import http.server
import json
import os
import re
import threading
import time

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import httpx
import numpy as np
import psutil
import pytest
import space_server
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from tiny import generator, quiet

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images, quantize

ENDPOINTS = ["/bound", "/forward", "/gaussian", "/model", "/rate_distortion", "/sample", "/score"]
# Of what takes long, less.
LIGHTER = {"/bound": {"draws": 2}, "/rate_distortion": {"num_images": 2}, "/sample": {"num_images": 1}}
TOOLS = {
    "list_models": set(),
    "score_image": {"image", "example", "model", "evaluations", "seed"},
    "classify_image": {"image", "example", "model", "evaluations", "seed"},
    "bound_of_image": {"example", "model", "steps", "draws", "seed"},
    "bound_of_model": {"model"},
    "sample_images": {"num_images", "steps", "model", "seed"},
    "compress_images": {"images", "model", "steps"},
    "decompress_file": {"file", "model"},
}
PICTURES = space_server.SPACE / "examples" / "pictures"
# Nothing here is encrypted; to read the certificates of all authorities anew takes a request longer than the request.
gradio_client = functools.partial(Client, verbose=False, ssl_verify=False)
get, post = (functools.partial(method, verify=False) for method in (httpx.get, httpx.post))


@pytest.fixture(scope="module")
def client(space):
    return gradio_client(space[0])


@pytest.fixture(scope="module")
def digits():
    return quiet(VLBDDPMPipeline.from_pretrained(space_server.SPACE / "checkpoints" / "ddpm-vlb-digits"))


def call(address, endpoint, data, **headers):
    r"""A plain HTTP call of an endpoint: (event, data) of the last thing that it says."""
    answer = post(f"{address}/gradio_api/call{endpoint}", json={"data": data}, headers=headers)
    if answer.status_code != 200:
        return str(answer.status_code), answer.text
    text = get(f"{address}/gradio_api/call{endpoint}/{answer.json()['event_id']}", timeout=120, headers=headers).text
    event, data = text.strip().split("event: ")[-1].split("\ndata: ")
    return event, json.loads(data)


def test_every_event_is_a_named_endpoint_with_defaults(client):
    api = client.view_api(return_format="dict", print_info=False)
    assert set(api["named_endpoints"]) == {*ENDPOINTS, *(f"/{name}" for name in TOOLS)} and not api["unnamed_endpoints"]
    for endpoint in ENDPOINTS:
        info = api["named_endpoints"][endpoint]
        assert all(parameter["parameter_has_default"] for parameter in info["parameters"]), endpoint
        assert info["description"] and [value["label"] for value in info["returns"]] == ["Numbers", "Picture", "Code"]
        numbers, picture, code = client.predict(api_name=endpoint, **LIGHTER.get(endpoint, {}))
        assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
        assert picture.startswith("<") and "import" in code


def test_a_score_is_that_of_evaluate_nll(client, digits):
    images = load_images("digits", "test").images
    numbers, _, _ = client.predict(number=17, evaluations=128, seed=3, api_name="/score")
    options = {"method": "sampled", "evaluations_per_image": 128}
    out = digits.evaluate_nll(images[17:18], generator=generator(3), **options)
    assert numbers["bits_per_dim"] == pytest.approx(out.bits_per_dim.item(), rel=1e-9)
    assert numbers["monte_carlo_error"] == pytest.approx(out.monte_carlo_error.item(), rel=1e-6)


def ask_tools(address, *calls):
    r"""What an agent sees: the tools, and (whether it is an error, the text) of each call, by the real client."""
    session = pytest.importorskip("mcp").ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def ask():
        async with streamablehttp_client(f"{address}/gradio_api/mcp/") as (read, write, _), session(read, write) as client:
            await client.initialize()
            tools = (await client.list_tools()).tools
            answers = [await client.call_tool(name, values) for name, values in calls]
            return tools, [(answer.isError, "".join(part.text for part in answer.content)) for answer in answers]

    return asyncio.run(ask())


def test_agents_find_documented_tools(space, digits):
    picture = base64.b64encode((PICTURES / "digit-3.png").read_bytes()).decode()
    tools, answers = ask_tools(
        space[0],
        ("score_image", {"image": picture, "evaluations": 128, "seed": 3}),
        ("bound_of_image", {"example": 3, "steps": 20, "draws": 4}),
        ("bound_of_model", {}),
        ("sample_images", {"num_images": 2, "steps": 10, "seed": 5}),
        ("list_models", {}),
        ("compress_images", {"images": [picture] * 3, "steps": 4}),
        ("classify_image", {"image": picture, "seed": 2}),
    )
    assert {tool.name: set(tool.inputSchema["properties"]) for tool in tools} == TOOLS
    for tool in tools:
        assert tool.description and "Returns: JSON" in tool.description
        for name, schema in tool.inputSchema["properties"].items():
            assert schema["type"] in ("integer", "string", "array") and schema["description"].endswith("."), (tool.name, name)
    assert not any(failed for failed, _ in answers), answers
    score, bound, model, sampled, listed, compressed, classified = (json.loads(text) for _, text in answers)
    # This Space is one without the package: the file that it carries has the codec, too.
    _, ((failed, text),) = ask_tools(space[0], ("decompress_file", {"file": compressed["file"]}))
    assert not failed and json.loads(text)["levels"] == [score["levels"]] * 3

    assert [one["num_classes"] for one in listed] == [10, None]
    assert classified["label"] == load_images("digits", "test").labels[3] and len(classified["probabilities"]) == 10
    image = load_images("digits", "test").images[3:4]
    out = digits.evaluate_nll(image, generator=generator(3), method="sampled", evaluations_per_image=128)
    assert score["bits_per_dim"] == pytest.approx(out.bits_per_dim.item(), rel=1e-9) and score["levels"] == image[0].tolist()
    for numbers in (score, bound, model):
        parts = numbers["prior"] + numbers["transitions_total"] + numbers["decoder"]
        assert parts == pytest.approx(numbers["bits_per_dim"])
    assert model["num_images"] == listed[0]["num_examples"] == 360
    images = digits(2, generator(5), 10, output_type="pt").images
    assert torch.equal((images * 16).round().int(), torch.tensor(sampled["levels"]))


def test_agents_are_refused_in_a_sentence(space):
    cases = [
        ("score_image", {"image": "no picture"}, "`image` must be the base64 text of a file."),
        ("score_image", {"image": base64.b64encode(b"no picture").decode()}, "must be a picture"),
        ("score_image", {"evaluations": 65}, "even number in 64 to 2048, got 65"),
        ("score_image", {"example": "x"}, "'x' is not of type 'integer'"),
        ("score_image", {"example": 360}, "0 to 359, got 360"),
        (
            "classify_image",
            {"model": "ddpm-vlb-mnist"},
            "No class-conditional model of its images travels",
        ),
        ("classify_image", {"evaluations": 19}, "must lie in 20 to 2000, got 19"),
        ("score_image", {"seed": -1}, "`seed` must lie in 0 to 2147483647, got -1."),
        ("bound_of_image", {"steps": 1000, "draws": 64}, "2 to 20 draws"),
        ("bound_of_model", {"model": "../../etc"}, "must be one of ddpm-vlb-digits, ddpm-vlb-mnist, got '../../etc'."),
        ("sample_images", {"num_images": 17}, "no more than 16"),
        ("compress_images", {"images": []}, "no more than 64"),
        ("decompress_file", {"file": base64.b64encode(b"no file").decode()}, "must be"),
    ]
    _, answers = ask_tools(space[0], *((name, values) for name, values, _ in cases))
    for (failed, text), (name, _, sentence) in zip(answers, cases):
        assert failed and sentence in text and "\n" not in text and "Traceback" not in text, (name, text)
    # The API beside it checks no types by itself.
    event, answer = call(space[0], "/score_image", ["", 0, ["x"], 64, 0])
    assert event == "error" and answer["error"] == "`model` must be a text, got ['x']."


def test_an_upload_is_scored_as_it_is_shown(client, digits, tmp_path):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 30), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    numbers, page, _ = client.predict(source="upload", upload=handle_file(tmp_path / "picture.png"), api_name="/score")
    boxed = np.asarray(picture.resize((8, 8), Image.Resampling.BOX))
    assert torch.equal(torch.tensor(numbers["levels"])[0], quantize(boxed.copy(), 17).long()) and "30 × 30" in page
    out = digits.evaluate_nll(
        torch.tensor(numbers["levels"])[None].to(torch.uint8),
        generator=generator(0),
        method="sampled",
        evaluations_per_image=256,
    )
    assert numbers["bits_per_dim"] == pytest.approx(out.bits_per_dim.item(), rel=1e-9)


@pytest.mark.parametrize(("language", "sentence"), [("en-GB,en;q=0.8", "must stand still"), ("ja,en;q=0.8", "静止画")])
def test_bad_uploads_get_a_sentence(space, tmp_path, language, sentence):
    Image.new("L", (8, 8)).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (8, 8), 255)])
    client = gradio_client(space[0], headers={"Accept-Language": language})
    with pytest.raises(AppError, match=sentence):
        client.predict(source="upload", upload=handle_file(tmp_path / "a.gif"), api_name="/score")


@pytest.mark.parametrize(
    ("endpoint", "values", "message"),
    [
        ("/forward", {"model": "../../etc"}, "not in the list"),
        ("/model", {"model": "google/ddpm-cifar10-32"}, "not in the list"),
        ("/forward", {"t": 10**9}, "greater than maximum"),
        ("/bound", {"steps": 1000, "draws": 64}, "2 to 20 draws"),
        ("/gaussian", {"points": "0.1; drop"}, "positive numbers"),
        ("/score", {"evaluations": 65}, "even number"),
        ("/score", {"seed": -1}, "less than minimum"),
        ("/score", {"number": 300, "model": "ddpm-vlb-mnist"}, "0 to 199"),
        ("/forward", {"seed": None}, "`seed` must have a value"),
        ("/bound", {"seed": None}, "`seed` must have a value"),
    ],
)
def test_bad_values_get_a_sentence(client, endpoint, values, message):
    with pytest.raises(AppError, match=message):
        client.predict(api_name=endpoint, **values)


def test_malformed_calls_get_a_sentence_and_a_line(space, space_folder):
    r"""No traceback: whoever sends rubbish fills no log."""
    address, _ = space
    log = space_folder / "log.txt"

    def lines():
        return log.read_text().splitlines()

    upload = ["ddpm-vlb-digits", "upload", 0, "as it is", 64, 0]
    for endpoint, data, sentence in [
        ("/gaussian", [], "each of the 9 inputs a value of its kind"),
        ("/gaussian", ["a", 0, 1, 1, 0, 10, 0, "1\n2", 1], "each of the 9 inputs a value of its kind"),
        ("/gaussian", [0, 0, 1, 1, [7], 10, 0, "1", 1], "each of the 9 inputs a value of its kind"),
        ("/gaussian", [0, 0, 0, 1, 0, 10, 0, "1", 1], "less than minimum value"),
        ("/score", [*upload, "abc", None], "each of the 8 inputs a value of its kind"),
        ("/score", [*upload, {"path": 5}, None], "each of the 8 inputs a value of its kind"),
        ("/model", ["../../etc"], "not in the list"),
    ]:
        before = len(lines())
        event, answer = call(address, endpoint, data)
        assert event == "error" and sentence in answer["error"], (endpoint, data)
        wait_until(lambda before=before: len(lines()) > before)
        assert len(lines()) == before + 1 and lines()[-1].startswith(f"'{endpoint}' refused: "), lines()[before:]
    before = len(lines())
    assert call(address, "/nothing", []) == ("404", "No such endpoint.")
    joined = {"data": [], "fn_index": 9999, "session_hash": "a"}
    assert post(f"{address}/gradio_api/queue/join", json=joined).status_code == 404
    assert len(lines()) == before + 2


@pytest.mark.parametrize("as_url", [False, True])
def test_no_file_is_read_and_no_address_fetched(space, as_url):
    r"""Neither through an endpoint nor through the server's own routes; the app's own files are no exception."""
    address, _ = space
    fetched = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            fetched.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    listener = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    elsewhere = f"http://127.0.0.1:{listener.server_port}/picture.png"
    places = ["/etc/passwd", "../app.py", "app.py", "examples/pictures/digit-0.png", str(PICTURES / "digit-0.png")]
    for place in [elsewhere, "file:///etc/passwd", *places]:
        file = {"path": None if as_url else place, "url": place if as_url else None, "meta": {"_type": "gradio.FileData"}}
        event, _ = call(address, "/score", ["ddpm-vlb-digits", "upload", 0, "as it is", 64, 0, file, None])
        assert event != "complete", place
        # A file where none is expected.
        event, _ = call(address, "/score", ["ddpm-vlb-digits", "draw", 0, "as it is", 64, 0, None, file])
        assert event != "complete", place
        for route in ("/gradio_api/file=", "/gradio_api/proxy=", "/file="):
            answer = get(f"{address}{route}{place}", follow_redirects=False)
            assert answer.status_code >= 400 and "root:" not in answer.text and "argparse" not in answer.text, (route, place)
    listener.shutdown()
    assert not fetched


def test_uploads_have_a_limit(space):
    address, _ = space
    answer = post(f"{address}/gradio_api/upload", files={"files": ("a.png", b"0" * (6 * 2**20))}, timeout=60)
    assert answer.status_code == 413


def test_visitors_do_not_mix(space):
    r"""Eight at once, with seeds, models and schedules of their own, get what each gets alone."""
    asked = [
        ("/sample", {"seed": 1, "steps": 15, "spacing": "leading", "num_images": 2}),
        ("/sample", {"seed": 2, "steps": 10, "spacing": "trailing", "num_images": 2, "variance": "fixed_small"}),
        ("/bound", {"seed": 3, "steps": 10, "draws": 4}),
        ("/bound", {"seed": 4, "steps": 15, "draws": 4, "number": 5}),
        ("/score", {"seed": 5, "evaluations": 64, "number": 3}),
        ("/bound", {"seed": 4, "steps": 4, "draws": 4, "number": 5, "model": "ddpm-vlb-mnist"}),
        ("/rate_distortion", {"seed": 6, "steps": 10, "num_images": 3}),
        ("/forward", {"seed": 7, "t": 77, "model": "ddpm-vlb-mnist"}),
    ]

    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        visitors = list(pool.map(lambda _: gradio_client(space[0]), asked))

        def ask(number):
            endpoint, values = asked[number]
            return visitors[number].predict(api_name=endpoint, **values)[0]

        alone = [ask(number) for number in range(len(asked))]
        assert list(pool.map(ask, range(len(asked)))) == alone


@pytest.mark.parametrize(
    ("endpoint", "values"),
    [
        ("/bound", {"steps": 1000, "draws": 20, "model": "ddpm-vlb-mnist"}),
        ("/score", {"evaluations": 2048, "model": "ddpm-vlb-mnist"}),
        ("/rate_distortion", {"steps": 250, "num_images": 32, "model": "ddpm-vlb-mnist"}),
    ],
)
def test_what_is_cancelled_stops(space, endpoint, values):
    r"""Not only for the visitor: the process has nothing left to do. (Each takes from several seconds to a minute.)"""
    address, process = space
    job = gradio_client(address).submit(api_name=endpoint, **values)
    server = psutil.Process(process.pid)

    def busy(seconds):
        before = sum(server.cpu_times()[:2])
        time.sleep(seconds)
        return (sum(server.cpu_times()[:2]) - before) / seconds

    wait_until(lambda: len(job.outputs()) >= 2)
    assert not job.done()
    job.cancel()
    wait_until(lambda: busy(0.5) < 0.1)
    assert len(job.outputs()) >= 2


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_results_come_in_parts(client):
    job = client.submit(steps=100, draws=8, api_name="/bound")
    job.result(timeout=120)
    stages = [numbers for numbers, _, _ in job.outputs()]
    done = [stage["steps_done"] for stage in stages[:-1]]
    assert len(done) > 5 and done == sorted(set(done)) and "bits_per_dim" in stages[-1]


def test_a_long_queue_is_closed_and_opens_again(space, client):
    address, _ = space
    data = [1, 25, "ddpm-vlb-digits", 0]
    with httpx.Client(verify=False) as visitor:
        statuses = [
            visitor.post(f"{address}/gradio_api/call/sample_images", json={"data": data}).status_code for _ in range(80)
        ]
    assert set(statuses) == {200, 503} and statuses.count(200) >= 32
    wait_until(lambda: call(address, "/gaussian", [0, 0, 1, 1, 0, 10, 0, "1", 1])[0] == "complete", 120)
    wait_until(lambda: call(address, "/sample_images", data)[0] == "complete", 120)


def test_the_lines_of_the_readme(space, monkeypatch):
    text = (space_server.SPACE / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(space_server.SPACE)
    exec(code.replace("http://127.0.0.1:7860", space[0]), namespace := {})
    parts = (namespace["numbers"][key] for key in ("prior", "transitions_total", "decoder"))
    assert sum(parts) == pytest.approx(namespace["numbers"]["bits_per_dim"])


def test_the_server_talks_to_this_machine_alone(space, space_folder, client):
    r"""In everything above; its start included."""
    client.predict(api_name="/score")
    asked = set((space_folder / "sockets.txt").read_text().split())
    assert asked and asked <= {"127.0.0.1", "localhost", "0.0.0.0", "::1", "None"}
