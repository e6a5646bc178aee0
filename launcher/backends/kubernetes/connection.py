"""Which cluster, in which namespace, with which credentials: from the kubeconfig, or inside a pod from its account."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

from launcher.errors import BackendError, NotAnswering, nearest

CONNECT_S, READ_S = 5.0, 30.0
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_HINT = "Name one with KUBECONFIG, or see that `kubectl get pods` works here; or run elsewhere: --on PROFILE"
_TRANSPORT = (
    "Connection refused", "Connection reset", "No route to host", "Network is unreachable",
    "Name or service not known", "Temporary failure in name resolution", "Connection aborted",
)  # fmt: skip
_CREDENTIALS = "Log in again as your cluster wants it, until `kubectl get pods` works here."


@dataclass(frozen=True)
class Place:
    """Where calls go."""

    context: str
    """The kubeconfig's context; empty inside a pod."""
    namespace: str
    files: tuple[Path, ...] = ()
    """The kubeconfig's files, the first to name something wins; none inside a pod."""


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    body: bytes

    def json(self) -> dict[str, Any]:
        """The object in it; empty when it is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def find_place(context: str = "", namespace: str = "") -> Place:
    """Find the cluster that a profile means.

    Args:
        context: the profile's; empty for the current one. Inside a pod without a kubeconfig it has no meaning.
        namespace: the profile's; empty for the context's, or the pod's own.

    Raises:
        BackendError: there is no kubeconfig, it cannot be read, or it has no such context.
    """
    files = _kubeconfig_files()
    if not files and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return Place("", namespace or _own_namespace())
    if not files:
        named = os.environ.get("KUBECONFIG")
        where = f"KUBECONFIG names {named}, which is not there" if named else "there is no kubeconfig (~/.kube/config)"
        raise BackendError(f"no Kubernetes cluster is known here: {where}", _HINT)
    contexts, current = _contexts(files)
    wanted = context or current
    if not wanted:
        hint = f"Set kubernetes.context to one of {_listed(contexts)}, or: kubectl config use-context NAME"
        raise BackendError("the kubeconfig has no current context", hint)
    if wanted not in contexts:
        whose = "" if context else ", although it is the current one"
        hint = f"Contexts there: {_listed(contexts)}. Set kubernetes.context in the profile, or KUBECONFIG."
        raise BackendError(f"the kubeconfig has no context '{wanted}'{whose}{nearest(wanted, contexts)}", hint)
    return Place(wanted, namespace or contexts[wanted] or "default", files)


def _kubeconfig_files() -> tuple[Path, ...]:
    named = os.environ.get("KUBECONFIG") or "~/.kube/config"
    # An unknown home folder or user leaves ~ as it is: no such file.
    return tuple(
        Path(path) for text in named.split(os.pathsep) if text and os.path.isfile(path := os.path.expanduser(text))
    )


def _own_namespace() -> str:
    try:
        return (_ACCOUNT / "namespace").read_text().strip()
    except OSError:
        return "default"


def _listed(contexts: dict[str, str]) -> str:
    return ", ".join(sorted(contexts)) or "none"


def _contexts(files: tuple[Path, ...]) -> tuple[dict[str, str], str]:
    """Every context with its namespace, and the name of the current one."""
    contexts, current = dict[str, str](), ""
    for path in files:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            for entry in content.get("contexts") or []:
                contexts.setdefault(str(entry["name"]), str((entry.get("context") or {}).get("namespace") or ""))
            current = current or str(content.get("current-context") or "")
        except OSError as error:
            raise BackendError(f"the kubeconfig {path} cannot be read: {error.strerror}", _HINT) from None
        except (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError):
            raise BackendError(f"{path} is no kubeconfig: see `kubectl config view`", _HINT) from None
    return contexts, current


class Connection:
    """Calls to one API server with credentials that are renewed when they expire."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def call(self, method: str, path: str, query: dict[str, Any] | None = None, body: Any = None) -> Answer:
        """Make one call, refused credentials read anew once.

        Raises:
            NotAnswering: nobody answers, or what answers is not able to.
            BackendError: no credentials, or certificates that do not fit.
        """
        answer = self._send(method, path, query, body)
        if answer.status == 401:
            # A token may end before it says so, and its file or its plugin have another by now.
            self.__dict__.pop("_ready", None)
            answer = self._send(method, path, query, body)
        if answer.status == 401:
            words = self._complaint or "401 Unauthorized"
            raise BackendError(f"{self.server} does not accept the credentials: {words}", _CREDENTIALS)
        return answer

    @property
    def server(self) -> str:
        """The server's address, without what may be secret in it."""
        parts = urlsplit(str(self._ready[0].host))
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")

    _complaint = ""
    """Why there are no new credentials, in the words of the plugin that was to get them."""

    @functools.cached_property
    def _ready(self) -> tuple[Any, Any]:
        """The configuration, and the connections that obey it."""
        import urllib3
        from kubernetes.client.configuration import Configuration
        from kubernetes.client.rest import RESTClientObject

        _quieten()
        configuration = Configuration()
        with self._listen():
            _load(self._place, configuration)
        if self._complaint:
            context = f"the kubeconfig's context '{self._place.context}'"
            raise BackendError(f"{context} gives no credentials: {self._complaint}", _CREDENTIALS)
        configuration.retries = False
        try:
            return configuration, RESTClientObject(configuration).pool_manager
        except (urllib3.exceptions.HTTPError, ImportError, ValueError) as error:
            # A socks:// proxy needs a library that need not be here; others are none at all.
            address = str(configuration.proxy).rpartition("@")[2]
            hint = "Set HTTPS_PROXY to an http:// or https:// proxy, or NO_PROXY to the name of the server."
            raise BackendError(f"the proxy {address} cannot be used: {error}", hint) from None

    @contextlib.contextmanager
    def _listen(self) -> Iterator[None]:
        """Catch what the library only logs: that a credentials plugin failed."""
        heard: list[str] = []
        handler = logging.Handler(logging.ERROR)
        handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
        self._complaint = " ".join("; ".join(heard).split())

    def _headers(self) -> dict[str, str]:
        configuration = self._ready[0]
        complaint = self._complaint
        with self._listen():
            secret = (configuration.auth_settings().get("BearerToken") or {}).get("value")
        self._complaint = self._complaint or complaint
        headers = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "llavajob"}
        return {**headers, "Authorization": secret} if secret else headers

    def stream(
        self, path: str, query: dict[str, Any], quiet_s: float, refused: Callable[[Answer], None]
    ) -> Iterator[bytes]:
        """Yield an answer as it comes, until it ends or nothing has come for so long.

        Args:
            path: as for ``call``.
            query: as for ``call``.
            quiet_s: how long.
            refused: called with an answer that is no success.

        Raises:
            NotAnswering: nobody answers, or the line was lost.
        """
        import urllib3

        answer = self._open("GET", path, query, None, quiet_s)
        try:
            if answer.status == 200:
                yield from answer.stream()
            else:
                refused(Answer(answer.status, answer.read()))
        except urllib3.exceptions.ReadTimeoutError:
            return
        except urllib3.exceptions.HTTPError as error:
            raise _unheard(self.server, error) from None
        finally:
            answer.close()  # what was not read would be read from it by the next who uses it

    def _send(self, method: str, path: str, query: dict[str, Any] | None, body: Any) -> Answer:
        import urllib3

        answer = self._open(method, path, query, body, READ_S)
        try:
            return Answer(answer.status, answer.read())
        except urllib3.exceptions.HTTPError as error:
            raise _unheard(self.server, error) from None
        finally:
            answer.release_conn()

    def _open(self, method: str, path: str, query: dict[str, Any] | None, body: Any, read_s: float) -> Any:
        """Send a call; its answer's body is still to be read."""
        import urllib3

        configuration, pool = self._ready
        url = str(configuration.host).rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
        try:
            return pool.request(
                method, url, body=None if body is None else json.dumps(body), headers=self._headers(), retries=False,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=read_s), preload_content=False,
            )  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise _unheard(self.server, error) from None


def _quieten() -> None:
    """Silence what urllib3 would print: its retries are ours, and whether to trust a server is the kubeconfig's."""
    import urllib3

    urllib3.disable_warnings()
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def _load(place: Place, configuration: Any) -> None:
    from kubernetes.config import ConfigException
    from kubernetes.config.incluster_config import load_incluster_config
    from kubernetes.config.kube_config import load_kube_config

    try:
        if place.files:
            names = os.pathsep.join(map(str, place.files))
            load_kube_config(names, place.context, client_configuration=configuration)
        else:
            load_incluster_config(client_configuration=configuration)
    except ConfigException as error:
        where = f"the kubeconfig's context '{place.context}'" if place.files else "this pod's service account"
        raise BackendError(f"{where} gives no access: {error}", _CREDENTIALS if place.files else "") from None


def _unheard(server: str, error: Exception) -> BackendError:
    reason = error.args[-1] if error.args and isinstance(error.args[-1], Exception) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        hint = "The kubeconfig's certificate-authority must be the cluster's. Fetch the kubeconfig again."
        return BackendError(f"{server} cannot be trusted: {reason.verify_message or reason}", hint)
    return NotAnswering(
        f"Kubernetes does not answer ({server}: {_transport_words(error)})",
        "It may be restarting, or only be reached through a VPN. Try again in a minute; see also: kubectl version",
    )


def _transport_words(error: Exception) -> str:
    """What urllib3 says at length, in few words."""
    text = str(error)
    for sign in _TRANSPORT:
        if sign in text:
            return sign.lower()
    if "timed out" in text.lower():
        return f"no answer within {READ_S if 'read' in text.lower() else CONNECT_S:.0f} s"
    return re.sub(r"^<?\S+ ?object at 0x\w+>?:? ?", "", text) or type(error).__name__
