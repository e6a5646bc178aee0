"""What every pod of a step runs: ``python -m launcher.backends.kubernetes.pod STEP``.

The plan lies in a file that is mounted from the run's ConfigMap (LLAVAJOB_PLAN). Exit code: 0 done; 1 failed for good;
2 the run's folder belongs to another run; 175 told to leave, state saved; a shard's or task's pod ends with the code of
what it ran.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from launcher.backends.kubernetes.coordinator import Coordinator
from launcher.backends.kubernetes.ending_note import leave_note
from launcher.backends.kubernetes.participant import Participant
from launcher.backends.kubernetes.quantities import cpu_share, parse_cpu
from launcher.backends.kubernetes.single import Single
from launcher.backends.kubernetes.telling import Teller, telling
from launcher.backends.kubernetes.whereabouts import Whereabouts
from launcher.cores import ENV_CPUS
from launcher.file_modes import follow_folder
from launcher.plan import Plan, Step
from launcher.plan_text import load_plan
from launcher.run_folder import EXIT_BAD_REQUEST, RunFolder, write_aside
from launcher.run_identity import FolderTaken, claim_folder
from launcher.yaml_text import dump

PLAN_FILE = "/etc/llavajob/plan.yaml"
_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
_SETTLE_S = 10.0
"""So long the coordinator of a pod that is to go may take to settle the attempt that its own node has left."""


def main(arguments: list[str]) -> int:
    """Run this pod's part of a step."""
    plan = load_plan(Path(os.environ.get("LLAVAJOB_PLAN", PLAN_FILE)))
    step = next(step for step in plan.steps if step.name == arguments[0])
    folder = RunFolder(plan.folder)
    number = own_number(step)
    if plan.settings.get("cpu"):
        # Where nodes set no quotas, what the pod asked for is all that tells how many cores are its own.
        os.environ[ENV_CPUS] = str(parse_cpu(cpu_share(str(plan.settings["cpu"]), step.per_node)) / 1000)
    if folder.root.is_dir():
        follow_folder(folder.root)
    try:
        claim_folder(plan.folder, plan.run_id)
        with telling(folder, step, number) as teller:
            if step.kind == "gang":
                return asyncio.run(take_part(plan, step, number, teller))
            write_configs(plan)
            return Single(folder, plan.run_id, step, number, plan.code).run()
    except FolderTaken as error:
        print(error.message, flush=True)
        leave_note(error.message)
        return EXIT_BAD_REQUEST
    except OSError as error:
        # Most often the volume: what is not there, cannot be written by this user, or is full.
        why = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}, as user {os.getuid()}"
        print(f"the run's folder cannot be used: {why}", flush=True)
        leave_note(f"the run's folder cannot be used: {why}")
        return 1


def own_number(step: Step) -> int:
    """This pod's node or shard: the operator counts the gang's pods, the job controller an array's."""
    if step.kind == "gang":
        return int(os.environ.get("PET_NODE_RANK") or os.environ.get("RANK") or 0)
    if step.kind == "array":
        return step.members[int(os.environ["JOB_COMPLETION_INDEX"])]
    return 0


async def take_part(plan: Plan, step: Step, number: int, teller: Teller) -> int:
    """Be a node of a gang; the first one coordinates as well."""
    folder, loop = RunFolder(plan.folder), asyncio.get_running_loop()
    port = int(os.environ.get("MASTER_PORT", "23456"))
    address = "localhost" if number == 0 else os.environ["MASTER_ADDR"]
    coordinator_at = Whereabouts(folder, step.name, address, port)
    most_s = float(plan.settings.get("start_timeout_s", 0))
    participant = Participant(folder, plan.run_id, step, number, coordinator_at, plan.code, start_timeout_s=most_s)
    coordinator = None
    if number == 0:
        tell = _teller(teller)
        coordinator = Coordinator(folder, step, port, tell, run_id=plan.run_id, start_timeout_s=most_s)

    def leave(name: signal.Signals) -> None:
        participant.leave(name)
        if coordinator is not None:
            coordinator.stopping = True

    for name in _SIGNALS:
        loop.add_signal_handler(name, leave, name)
    if coordinator is None:
        return await participant.run()
    await asyncio.to_thread(write_configs, plan)
    await coordinator.start()
    return await _both(coordinator, participant)


def _teller(teller: Teller) -> Callable[[int, Collection[int] | None], None]:
    def tell_again(attempt: int, nodes: Collection[int] | None) -> None:
        if nodes is None or nodes:
            teller.tell_again(attempt, nodes=nodes)

    return tell_again


async def _both(coordinator: Coordinator, participant: Participant) -> int:
    """The master's pod ends with the coordinator's word; when it is to go, its own node goes first."""
    leading = asyncio.create_task(coordinator.run())
    following = asyncio.create_task(participant.run())
    await asyncio.wait({leading, following}, return_when=asyncio.FIRST_COMPLETED)
    if not leading.done():
        await asyncio.wait({leading}, timeout=participant.step.grace_s + _SETTLE_S)
    if not leading.done():
        return await following
    await asyncio.wait({following}, timeout=_SETTLE_S)
    return await leading


def write_configs(plan: Plan) -> None:
    """Bring each stage's configuration into the run's folder, where the runtime reads it."""
    for name, values in plan.configs.items():
        path, text = Path(name), dump(values)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_aside(path, text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
