"""The process of vLLM's CPU build, in vLLM's own environment: `python -m bench.vllm_cpu_process
CHECKPOINT`. Takes questions as JSON lines on stdin, answers each on stdout, and ends with stdin.
"""

import os
import sys
import time
from typing import Any

from bench.peers import answer_questions


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    engine = _VllmEngine(sys.argv[1])
    answer_questions(engine.answer, answers)


class _VllmEngine:
    def __init__(self, checkpoint: str) -> None:
        from vllm import LLM  # type: ignore[import-not-found,unused-ignore]

        self._model = LLM(
            model=checkpoint,
            dtype="float32",
            skip_tokenizer_init=True,
            enforce_eager=True,
            enable_prefix_caching=False,
            max_model_len=4096,
            max_num_batched_tokens=32768,
            max_num_seqs=64,
            disable_log_stats=True,
        )

    def answer(
        self, prompts: list[list[int]], num_steps: int = 0, num_tokens: int = 0
    ) -> dict[str, Any]:
        if num_tokens:
            return {"tokens": self._generate(prompts, num_tokens)[1]}
        seconds = self._generate(prompts, 1)[0]
        if num_steps:  # what these add: the engine tells no steps apart
            seconds = self._generate(prompts, num_steps + 1)[0] - seconds
        return {"seconds": seconds}

    def _generate(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, list[list[int]]]:
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        began = time.perf_counter()
        outputs = self._model.generate(asked, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        return seconds, [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    main()
