"""OpenAI's client with a local server: start `school serve MODEL`, then python examples/openai_client.py URL

The thought of a model comes apart from its answer, as `reasoning_content`.
"""

import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none")
model = client.models.list().data[0].id
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "What is 2 + 3?"}],
    max_tokens=64,
    temperature=0.7,
    stream=True,
)
for chunk in stream:
    delta = chunk.choices[0].delta
    print(getattr(delta, "reasoning_content", None) or delta.content or "", end="", flush=True)
print()
