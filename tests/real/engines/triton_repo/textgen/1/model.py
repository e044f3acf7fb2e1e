"""Words that follow from the prompt, one a token, paced by TEXTGEN_ITL_MS: enough of an LLM to test a gateway against.

Directives inside a prompt: [[error-after-N]] fails after N tokens, [[stop-after-N]] finishes by itself, [[hang-after-N]] goes silent,
[[hang]] never answers, [[utf8]] writes multi-byte characters cut across responses.
"""

import json
import os
import re
import threading
import time
import zlib

import numpy as np
import triton_python_backend_utils as pb_utils

PACE_S = float(os.environ.get("TEXTGEN_ITL_MS", "5")) / 1000
LEXICON = "water falls through the gate and turns a wheel that lights every house along the river bank".split()
WIDE = "naïve 水門 → ½ 🌊 ".encode()
DIRECTIVE = re.compile(r"\[\[([a-z0-9]+?(?:-after)?)(?:-(\d+))?\]\]")


def fail(message, code="INTERNAL"):
    # By name: the stub adds TritonError to the module only after this one is imported.
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))


def send_last(sender, response):
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class Job:
    """One request's inputs."""

    def __init__(self, request):
        def read(name, default):
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            return default if tensor is None else tensor.as_numpy().reshape(-1)[0]

        self.request = request
        self.sender = request.get_response_sender()
        self.prompt = read("text_input", b"").decode()
        self.streamed = bool(read("stream", False))
        self.params = json.loads(read("sampling_parameters", b"{}"))
        self.echo = not read("exclude_input_in_output", self.streamed)
        self.wants = {
            name: bool(read("return_" + name, False))
            for name in ("finish_reason", "num_input_tokens", "num_output_tokens")
        }
        self.directives = {name: int(count or 0) for name, count in DIRECTIVE.findall(self.prompt)}

    def piece(self, index):
        if "utf8" in self.directives:
            return WIDE[2 * index % len(WIDE) :][:2]  # 20 bytes, two at a time: cuts every wide character somewhere
        seed = zlib.crc32(f"{self.prompt}/{self.params.get('seed', 0)}/{index}".encode())
        return LEXICON[seed % len(LEXICON)].encode() + b" "

    def answer(self, text, tokens, finish):
        tensors = [pb_utils.Tensor("text_output", np.array([text], dtype=np.object_))]
        if self.wants["finish_reason"]:
            tensors.append(pb_utils.Tensor("finish_reason", np.array([str(finish).encode()], dtype=np.object_)))
        if self.wants["num_input_tokens"]:
            tensors.append(pb_utils.Tensor("num_input_tokens", np.array([len(self.prompt.split())], dtype=np.uint32)))
        if self.wants["num_output_tokens"]:
            tensors.append(pb_utils.Tensor("num_output_tokens", np.array([tokens], dtype=np.uint32)))
        return pb_utils.InferenceResponse(output_tensors=tensors)


class TritonPythonModel:
    def initialize(self, args):
        family = pb_utils.MetricFamily(
            name="textgen_active", description="generations running now", kind=pb_utils.MetricFamily.GAUGE
        )
        self.family = family  # the gauge dies with its family
        self.gauge = family.Metric(labels={"model": args["model_name"]})
        self.lock = threading.Lock()

    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.serve, args=(Job(request),), daemon=True).start()

    def serve(self, job):
        self.count(1)
        try:
            send_last(job.sender, self.generate(job))
        except Exception as error:
            send_last(job.sender, fail(str(error)))
        finally:
            self.count(-1)

    def count(self, change):
        with self.lock:
            self.gauge.increment(change)

    def generate(self, job):
        """Send all responses but the last, which is returned."""
        budget = int(job.params.get("max_tokens", 16))
        stop_at = job.directives.get("stop-after", budget + 1)
        if "hang" in job.directives:
            return self.hang(job)
        whole = job.prompt.encode() if job.echo else b""
        for index in range(budget):
            time.sleep(PACE_S)
            if job.request.is_cancelled():
                return fail("cancelled", "CANCELLED")
            if index == job.directives.get("error-after", -1):
                return fail("the wheel broke at /srv/models/textgen/1/model.py on 10.1.2.3:8001")
            if index == job.directives.get("hang-after", -1):
                return self.hang(job)
            last = index == min(budget, stop_at) - 1
            finish = ("stop" if stop_at <= budget else "length") if last else None
            if not job.streamed:
                whole += job.piece(index)
            elif not last:
                job.sender.send(job.answer(job.piece(index), 1, finish))
            if last:
                return job.answer(job.piece(index), 1, finish) if job.streamed else job.answer(whole, index + 1, finish)
        return fail("max_tokens must be at least 1", "INVALID_ARG")

    def hang(self, job):
        while not job.request.is_cancelled():
            time.sleep(0.02)
        return fail("cancelled", "CANCELLED")
