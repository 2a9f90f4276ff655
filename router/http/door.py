"""The HTTP door put together: paths and who serves them. The one door to Starlette, whose router
finds who it is."""

from collections import defaultdict
from collections.abc import Callable

from starlette.routing import Route, Router

from cluster.metrics.server import Pages
from cluster.open_calls import OpenCalls
from router.callers.callers import Callers
from router.front.reception import Reception
from router.front.text import Text
from router.http.about import About
from router.http.answers import PING_S
from router.http.bodies import Bodies
from router.http.generation import HttpGeneration
from router.http.greeting import Context
from router.http.intake import BodyIntake
from router.http.openapi import OPERATIONS
from router.http.resource import Resource, ServeHttp, refuse_path
from router.http.server import HttpServer


def http_server(
    text: Text,
    reception: Reception,
    callers: Callers,
    *,
    address: str,
    clock: Callable[[], float],
    is_serving: Callable[[], bool],
    pages: Pages,
    tls: Context | None = None,
    ping_s: float = PING_S,
) -> HttpServer:
    """Makes what serves the pipeline behind gRPC to OpenAI's clients, too."""
    open_calls = OpenCalls()
    intake = BodyIntake(Bodies(text.limits.max_message_bytes), reception.lanes.process)
    generation = HttpGeneration(
        text=text, reception=reception, intake=intake, clock=clock, ping_s=ping_s
    )
    about = About(
        text=text,
        lanes=reception.lanes,
        intake=intake,
        is_serving=is_serving,
        pages=pages,
    )
    serving: dict[str, ServeHttp] = {
        "chat": generation.chat,
        "completion": generation.completion,
        "response": generation.response,
        "resumed": generation.resumed,
        "models": about.models,
        "model": about.model,
        "tokenize": about.tokenize,
        "detokenize": about.detokenize,
        "version": about.version,
        "livez": about.livez,
        "readyz": about.readyz,
        "metrics": about.metrics,
        "targets": about.targets,
        "openapi": about.openapi,
    }
    methods: defaultdict[str, dict[str, ServeHttp]] = defaultdict(dict)
    for operation in OPERATIONS:
        methods[operation.path][operation.method] = serving[operation.name]

    open_paths = {operation.path for operation in OPERATIONS if operation.is_open}

    def resource(path: str, by_method: dict[str, ServeHttp]) -> Resource:
        is_open = path in open_paths
        return Resource(by_method, text.limits, open_calls, callers, is_open=is_open)

    app = Router(
        [Route(path, resource(path, by_method)) for path, by_method in methods.items()],
        redirect_slashes=False,
        default=resource("", {"GET": refuse_path, "POST": refuse_path}),
    )
    return HttpServer(app, open_calls, address=address, tls=tls)
