"""An OpenAI-style chat API on Ray Serve: a conversation stays where its KV cache is.

The model is a stand-in, which only tells what it would have to compute: no GPU is needed. It is
configured and called as `ray.serve.llm.build_openai_app` does it with a real one.

    python examples/llm_chats.py [PORT]
"""

import json
import sys
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

PORT = 8017
SESSIONS = ["argument:prompt_cache_key", "argument:user"]
STICKY = RequestRouterConfig(
    request_router_class="ray_route.serve.StickyRequestRouter",
    request_router_kwargs={"namespace": "llm-example", "session_id_from": SESSIONS},
)
api = FastAPI()


class ChatRequest(BaseModel):
    """What OpenAI's clients send, or the part that matters here."""

    model: str = "stand-in"
    messages: list[dict[str, str]]
    user: str | None = None
    prompt_cache_key: str | None = None


class Model:
    """Answers every prompt; its cache holds the prefixes that it has computed."""

    def __init__(self) -> None:
        self.replica = serve.get_replica_context().replica_id.unique_id
        self.cache: set[tuple[str, ...]] = set()

    async def chat(self, request: ChatRequest, _headers: dict[str, str]) -> AsyncIterator[str]:
        """Stream an answer, word by word; the last event tells what was cached."""
        said = tuple(message["content"] for message in request.messages)
        prefixes = [said[:end] for end in range(1, len(said) + 1)]
        cached = sum(prefix in self.cache for prefix in prefixes)
        words = f"this is answer {len(said) // 2} to {said[-1]}".split()
        self.cache.update(prefixes, [(*said, " ".join(words))])
        for word in words:
            yield self._event(choices=[{"index": 0, "delta": {"content": word}}])
        known = {"cached_tokens": cached}
        usage = {"prompt_tokens": len(said), "prompt_tokens_details": known}
        yield self._event(choices=[], usage=usage)
        yield "data: [DONE]\n\n"

    def _event(self, **fields: Any) -> str:
        told = {"object": "chat.completion.chunk", "system_fingerprint": self.replica, **fields}
        return f"data: {json.dumps(told)}\n\n"


@serve.deployment(ray_actor_options={"num_cpus": 0})
@serve.ingress(api)
class Ingress:
    """The API before the model; it keeps nothing."""

    def __init__(self, model: DeploymentHandle[Any]) -> None:
        self.model = model.options(stream=True)

    @api.post("/v1/chat/completions")
    async def chat(self, body: ChatRequest, request: Request) -> StreamingResponse:
        """Stream what the conversation's replica answers."""
        model, session = self.model, request.headers.get("x-session-id")
        if session:  # Serve passes it to the first deployment alone
            model = model.options(session_id=session)
        events = model.chat.remote(body, dict(request.headers))
        return StreamingResponse(events, media_type="text/event-stream")


def app(router: RequestRouterConfig = STICKY, replicas: int = 3) -> serve.Application:
    """Build it as `build_openai_app` does from an `LLMConfig`'s `deployment_config`."""
    deployment_config = {
        "num_replicas": replicas,
        "ray_actor_options": {"num_cpus": 0},
        "request_router_config": router,
    }
    model = serve.deployment(Model, **deployment_config)
    return Ingress.bind(model.bind())


def ask(url: str, messages: list[Any], **fields: Any) -> tuple[str, dict[str, Any]]:
    """Send a conversation's messages; return the answer, and the last event of the stream."""
    headers = {"content-type": "application/json", **fields.pop("headers", {})}
    body = json.dumps({"messages": messages, **fields}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        lines = [line.removeprefix(b"data: ") for line in answer if line.strip()]
    assert lines.pop().strip() == b"[DONE]"
    *words, last = map(json.loads, lines)
    return " ".join(word["choices"][0]["delta"]["content"] for word in words), last


def converse(url: str, turns: int, **fields: Any) -> tuple[set[str], int]:
    """Hold a conversation; return the replicas that it met, and the messages computed for it."""
    messages, met, computed = [], set(), 0
    for turn in range(turns):
        messages.append({"role": "user", "content": f"question {turn} of {fields}"})
        answer, last = ask(url, messages, **fields)
        messages.append({"role": "assistant", "content": answer})
        met.add(last["system_fingerprint"])
        usage = last["usage"]
        computed += usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    return met, computed


def main() -> None:
    """Let thirty conversations have three turns each."""
    ray.init(ignore_reinit_error=True)
    port = int(sys.argv[1]) if len(sys.argv) > 1 else PORT
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app(), name="llm-example", route_prefix="/llm")
    url = f"http://127.0.0.1:{port}/llm"
    talks = [converse(url, 3, prompt_cache_key=f"chat-{number}") for number in range(30)]
    stayed = sum(len(met) == 1 for met, _ in talks)
    computed = sum(computed for _, computed in talks)
    print(
        f"{stayed} of 30 conversations stayed; of 270 messages in their prompts {computed} were new"
    )
    serve.shutdown()


if __name__ == "__main__":
    main()
