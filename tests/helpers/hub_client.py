r"""A process that talks to a local Hub with the real `huggingface_hub`, and runs what it is told.

The address of the Hub is read when the client is imported, so that the tests' own process cannot be one. It is kept for many
tests, and forks children for commands of their own (`command`), since torch and diffusers take seconds to import.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from hub_server import environment
from zygote import Zygote

HELPERS = Path(__file__).parent


class Failure(Exception):
    r"""What the process raised; `kinds` are the names of the exception's classes."""

    def __init__(self, message, kinds):
        super().__init__(message)
        self.kinds = kinds


class Client:
    r"""`without_package=True` is a machine on which `ddpm_vlb` is not installed: a Python of its own."""

    def __init__(self, hub, cache, without_package=False):
        self.cache, self.environment = cache, os.environ | environment(hub, cache)
        requests, self.requests = os.pipe()
        self.answers, answers = os.pipe()
        self.requests, self.answers = open(self.requests, "w"), open(self.answers)
        with open(requests) as stdin, open(answers, "w") as stdout, (cache / "stderr.txt").open("w") as stderr:
            how = {"env": self.environment, "cwd": cache, "stdin": stdin, "stdout": stdout, "stderr": stderr}
            if without_package:
                self.zygote = None
                self.process = subprocess.Popen([sys.executable, __file__, "without"], **how)
            else:
                self.zygote = Zygote(self.environment)
                self.process = self.zygote.start(__file__, **how)

    def run(self, code, **arguments):
        r"""Run `code`, whose names are `arguments`, and return what it leaves in `result`."""
        self.requests.write(json.dumps({"code": code, "arguments": arguments}) + "\n")
        self.requests.flush()
        answer = self.answers.readline()
        assert answer, (self.cache / "stderr.txt").read_text()[-3000:]
        answer = json.loads(answer)
        if "error" in answer:
            raise Failure(answer["error"], answer["kinds"])
        return answer["result"]

    def command(self, *arguments):
        r"""Run a command of the package in a process of its own."""
        return self.zygote.run("-m", "ddpm_vlb", *arguments, cwd=self.cache)

    def close(self):
        self.requests.close()
        self.process.wait(timeout=30)
        self.answers.close()
        if self.zygote:
            self.zygote.close()


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
