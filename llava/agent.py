"""One per node: starts the node's ranks with torchrun's own machinery, and handles signals and deaths our way.

``python -m llava.agent [torchrun options] [--grace SECONDS] -- -m llava.train --config FILE``

Torchrun puts every worker in its own session and answers SIGTERM by killing all after 30 seconds, which is too short
for a large checkpoint. Here SIGTERM and SIGUSR2 are handed on to the workers, who save and leave in their own time.

Exit code: 0; 2 or 3 where a worker says that another try would end the same; 175 where all workers were interrupted;
else 1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from llava import interrupt
from llava.errors import EXIT_BAD_REQUEST, EXIT_DONE, EXIT_FAILED, EXIT_FINAL, EXIT_INTERRUPTED
from llava.host import host_name
from llava.run_folder import ENV_ATTEMPT_DIR, ENV_NODE, write_aside

GRACE_SECONDS = 20
"""How long the survivors of a lost worker may take to notice and to save."""
# What asks to stop, and what the workers are told: a terminal's Ctrl-C or end is a wish to save and leave, too.
_HANDED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR2: signal.SIGUSR2,
    signal.SIGINT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
}


@dataclass
class Worker:
    """One rank on this node."""

    process: Any
    """Its ``subprocess.Popen``."""
    rank: int
    local_rank: int


@dataclass
class Agent:
    """The node's workers, and what has happened to them."""

    workers: list[Worker] = field(default_factory=list)
    fallen: list[Worker] = field(default_factory=list)
    """Those that ended by themselves before torch began to close the others."""
    asked: bool = False
    """A signal was handed on."""

    def hand_on(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: tell every worker; before there are any, leave."""
        self.asked = True
        if not self.workers:
            os._exit(EXIT_INTERRUPTED)
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(_HANDED_ON[signal.Signals(number)])

    def exit_code(self) -> int:
        """What the workers' ends mean for the node."""
        codes = [worker.process.poll() for worker in self.workers]
        ends = [code for code in codes if code != EXIT_DONE]
        final = [w.process.poll() for w in (*self.fallen, *self.workers)]
        final = [code for code in final if code in (EXIT_BAD_REQUEST, EXIT_FINAL)]
        # A worker that had no handler yet ends by the signal itself; it had nothing to save.
        interrupted = {EXIT_INTERRUPTED, -signal.SIGTERM, -signal.SIGUSR2}
        if not ends and codes:
            return EXIT_DONE
        if final:
            return int(final[0])
        if ends and interrupted.issuperset(ends) and (self.asked or EXIT_INTERRUPTED in ends):
            return EXIT_INTERRUPTED
        return EXIT_FAILED


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a node's workers; ends the process with their code."""
    agent = Agent()
    for number in _HANDED_ON:
        signal.signal(number, agent.hand_on)
    interrupt.die_with_parent(signal.SIGTERM)
    _close_stdin()
    grace, options, program = split(list(sys.argv[1:] if arguments is None else arguments))
    code = run(agent, grace, options, program)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def split(arguments: list[str]) -> tuple[int, list[str], list[str]]:
    """Grace in seconds, torchrun's options, and the program's words (behind ``--``)."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    options, program = arguments[:place], arguments[place + 1 :]
    if not program:
        sys.exit("usage: python -m llava.agent [torchrun options] [--grace SECONDS] -- -m llava.train --config FILE")
    grace = GRACE_SECONDS
    for number, option in enumerate(options):
        if option == "--grace":
            grace, options = int(options[number + 1]), options[:number] + options[number + 2 :]
            break
        if option.startswith("--grace="):
            grace, options = int(option.partition("=")[2]), options[:number] + options[number + 1 :]
            break
    return grace, options, program


def run(agent: Agent, grace: int, options: list[str], program: list[str]) -> int:
    """Start the workers and wait for their end; the node's exit code."""
    import logging

    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    watch(agent, grace)
    defaults = ["--max-restarts", "0", "--monitor-interval", "0.1", "--signals-to-handle", "SIGQUIT"]
    values = torchrun.parse_args([*defaults, *options, *program])  # type: ignore[no-untyped-call]
    try:
        torchrun.run(values)  # type: ignore[no-untyped-call]
    except ChildFailedError:
        tell(agent)
    return agent.exit_code()


def watch(agent: Agent, grace: int) -> None:
    """Have torch tell the agent which workers it starts, and when it begins to close them."""
    from torch.distributed.elastic.multiprocessing.api import PContext
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    start, close = SubprocessHandler._popen, PContext.close

    def started(self: Any, args: Any, env: dict[str, str]) -> Any:
        process = start(self, args, env)
        agent.workers.append(Worker(process, int(env["RANK"]), int(env["LOCAL_RANK"])))
        return process

    def closing(self: Any, death_sig: signal.Signals | None = None, timeout: int = 0) -> None:
        if not agent.fallen:
            agent.fallen = [w for w in agent.workers if w.process.poll() not in (None, EXIT_DONE)]
        close(self, death_sig, grace)

    SubprocessHandler._popen = started  # type: ignore[method-assign]
    PContext.close = closing  # type: ignore[method-assign]


def tell(agent: Agent) -> None:
    """Say how the workers ended; write the error file of those that could not."""
    for worker in agent.workers:
        code = worker.process.poll()
        if code in (EXIT_DONE, EXIT_INTERRUPTED):
            continue
        name = signal.Signals(-code).name if code is not None and code < 0 else None
        print(f"rank {worker.rank}: {f'ended by {name}' if name else f'exit code {code}'}", flush=True)
        if name is not None and not (agent.asked and -code in (signal.SIGTERM, signal.SIGUSR2)):
            write_error(worker, code, name, collective=worker not in agent.fallen)


def write_error(worker: Worker, code: int, name: str, collective: bool) -> None:
    """The error file of a worker that a signal ended, unless it wrote its own.

    Args:
        collective: it was closed because another worker had failed.
    """
    folder = os.environ.get(ENV_ATTEMPT_DIR)
    if not folder:
        return
    path = Path(folder) / "errors" / f"rank{worker.rank:04d}.json"
    if path.exists():
        return
    hint = "out of memory? the kernel ends processes this way; see the node's log" if name == "SIGKILL" else ""
    fields = {
        "rank": worker.rank,
        "local_rank": worker.local_rank,
        "node": int(os.environ.get(ENV_NODE, "0")),
        "host": host_name(),
        "pid": worker.process.pid,
        "time": time.time(),
        "exit_code": code,
        "signal": name,
        "exception": None,
        "message": f"rank {worker.rank} was ended by {name}",
        "hint": "" if collective else hint,
        "traceback": "",
        "collective": collective,
        "final": False,
        "step": None,
    }
    try:
        write_aside(path, json.dumps(fields, indent=2) + "\n")
    except OSError as error:
        print(f"cannot write {path}: {error}", file=sys.stderr, flush=True)


def _close_stdin() -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


if __name__ == "__main__":
    main()
