r"""A process that talks to a local Hub with the real `huggingface_hub`, and runs what it is told.

The address of the Hub is read when the client is imported, so that the tests' own process cannot be one. It is kept for many
tests, since torch and diffusers take seconds to import.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from hub_server import environment

HELPERS = Path(__file__).parent


class Failure(Exception):
    r"""What the process raised; `kinds` are the names of the exception's classes."""

    def __init__(self, message, kinds):
        super().__init__(message)
        self.kinds = kinds


class Client:
    r"""`without_package=True` is a machine on which `ddpm_vlb` is not installed."""

    def __init__(self, hub, cache, without_package=False, **extra):
        self.cache, self.environment = cache, os.environ | environment(hub, cache) | extra
        self.process = subprocess.Popen(
            [sys.executable, __file__, *(["without"] if without_package else [])],
            env=self.environment,
            cwd=cache,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(cache / "stderr.txt").open("w"),
            text=True,
        )

    def run(self, code, **arguments):
        r"""Run `code`, whose names are `arguments`, and return what it leaves in `result`."""
        self.process.stdin.write(json.dumps({"code": code, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, (self.cache / "stderr.txt").read_text()[-3000:]
        answer = json.loads(answer)
        if "error" in answer:
            raise Failure(answer["error"], answer["kinds"])
        return answer["result"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)


def serve():
    if sys.argv[1:] == ["without"]:
        sys.modules["ddpm_vlb"] = None  # an import of it fails, as where it is not installed
        sys.path = [path for path in sys.path if Path(path).resolve() != HELPERS]
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    for line in sys.stdin:
        request = json.loads(line)
        namespace = {"result": None, **request["arguments"]}
        try:
            exec(compile(request["code"], "code", "exec"), namespace)
            answer = {"result": namespace["result"]}
        except BaseException as error:
            answer = {"error": str(error), "kinds": [cls.__name__ for cls in type(error).__mro__]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
