"""Locust users of one model, over HTTP and gRPC, that check each answer they get.

    locust -f load_tests/user_load/locustfile.py --headless -u 32 -t 20s --host http://127.0.0.1:8080 \
        --grpc-host 127.0.0.1:8081

`--target` says which runtime listens there (`load_tests/targets.py`), what the model does (`--model-task`) what is
sent and how answers are judged (`load_tests/model_tasks.py`). At the end `--report FILE` gets what Locust's own tables
do not have: quality of the answers and batch sizes.
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import grpc.experimental.gevent as grpc_gevent
from locust import events

from load_tests.measurement import by_protocol, figures, quality
from load_tests.model_tasks import TASKS, TextClassification
from load_tests.targets import TARGETS
from load_tests.user_load.users import GrpcModelUser, HttpModelUser, Run

__all__ = ["GrpcModelUser", "HttpModelUser"]  # Locust uses the user classes of this module

grpc_gevent.init_gevent()


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add the options of this run."""
    parser.add_argument("--target", default="heed", choices=list(TARGETS), help="runtime under load")
    parser.add_argument("--model", default="sentiment", help="name of the model", metavar="MODEL")
    parser.add_argument("--model-task", default=TextClassification.name, choices=list(TASKS), help="task of the model")
    parser.add_argument("--grpc-host", default="127.0.0.1:8081", help="gRPC address, host:port", metavar="HOST:PORT")
    parser.add_argument("--report", default="", help="file for the report in JSON", metavar="FILE")


@events.init.add_listener
def load_material(environment: Any, **_: Any) -> None:
    """Create the run before the first user starts."""
    options: Namespace = environment.parsed_options
    environment.heed_run = Run({options.model: options.model_task}, TARGETS[options.target]())


@events.quitting.add_listener
def write_report(environment: Any, **_: Any) -> None:
    """Write the report at the end of the run."""
    options: Namespace = environment.parsed_options
    if not options.report:
        return
    run: Run = environment.heed_run
    records, task = run.records, run.tasks[options.model]
    seconds = max(each.ended_s for each in records) - min(each.due_s for each in records) if records else 0.0
    document = {"sent": task.material.source, **figures(records, seconds), **quality(records, task)}
    document["by_protocol"] = by_protocol(records, seconds)
    Path(options.report).write_text(json.dumps(document, indent=2) + "\n")
