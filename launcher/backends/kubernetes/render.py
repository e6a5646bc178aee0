"""A plan as the YAML that is sent, for ``--dry-run`` and for the run's record."""

from __future__ import annotations

from launcher.backends.kubernetes.objects import has_conductor, object_name, objects_to_send, open_steps, step_object
from launcher.backends.kubernetes.text import parse_objects, write_objects
from launcher.plan import Plan, Step

__all__ = ["parse_objects", "render_objects"]


def render_objects(plan: Plan) -> str:
    """Return exactly what is sent, with a head that says what it is and how to send it by hand."""
    lines = [f"# Run {plan.run}: what is sent to Kubernetes. By hand: kubectl apply --server-side -f FILE"]
    if has_conductor(plan):
        lines.append("# The conductor creates these from the files, each when the one before has succeeded:")
        lines += [f"#   {step_object(plan, step)['kind']} {_words(plan, step)}" for step in open_steps(plan)]
    return "\n".join([*lines, write_objects(objects_to_send(plan))])


def _words(plan: Plan, step: Step) -> str:
    size = {
        "gang": f"{step.nodes} x {step.processes_per_node} processes",
        "array": f"{len(step.members)} of {step.nodes} shards, {step.parallel} at once",
    }
    return ", ".join(filter(None, [object_name(plan, step), size.get(step.kind, "")]))
