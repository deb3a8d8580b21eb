"""Run vLLM's offline engine in one process, in a separate environment (`--python`).

The backend empties vLLM's prefix cache before each repeat, as RL training does after each update of the weights.
"""

import os

from protocol import read_workload, serve_repeats

folder, work = read_workload()
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{work['threads'] - 1}",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    from vllm import LLM, SamplingParams

    longest = max(map(len, work["prompts"])) + max(map(max, work["lengths"]))
    llm = LLM(
        model=str(folder / "model"),
        dtype=work.get("dtype", "float32"),
        max_model_len=longest,
        max_num_seqs=len(work["prompts"]) * work["samples"],
        seed=0,
    )
    prompts, params = [], []
    for prompt, group in zip(work["prompts"], work["lengths"], strict=True):
        for length in group:
            prompts.append({"prompt_token_ids": prompt})
            params.append(
                SamplingParams(temperature=1.0, max_tokens=length, min_tokens=length, ignore_eos=True, detokenize=False)
            )

    def run() -> dict:
        llm.reset_prefix_cache()
        lengths = [len(out.outputs[0].token_ids) for out in llm.generate(prompts, params, use_tqdm=False)]
        assert lengths == [length for group in work["lengths"] for length in group]
        return {"tokens": sum(lengths)}

    serve_repeats(run)


if __name__ == "__main__":
    main()
