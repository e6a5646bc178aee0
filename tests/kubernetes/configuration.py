"""What the daemons of a Kubernetes bed read: certificates, kubeconfigs, their settings and the operator's objects."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

from tests.kubernetes.build import programs
from tests.kubernetes.image import IMAGE
from tests.kubernetes.keeper import cgroup_name
from tests.slurm.bed import BedError

# The bed's network is its own, so these are free.
NODE = "node1"
GATEWAY = "192.168.77.1"
PODS = "192.168.77.0/24"
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
API_PORT = 443
ETCD = "http://127.0.0.1:2379"
WEBHOOK_PORT = 9443
OPERATOR_NAMESPACE, OPERATOR, WEBHOOK_SECRET = "kubeflow", "training-operator", "training-operator-webhook-cert"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
CERTIFICATE_DAYS = 30

# The bed sees its own /run, /var/log and /var/lib; of the host's it sees the last, and what is written there stays in
# the bed. The kubelet sets some of the kernel's parameters, the host's: it finds them set in files that hide them.
MACHINE = """\
ip link set lo up
ip address add {API_SERVICE}/32 dev lo
ip link add bed type bridge
ip address add {GATEWAY}/24 dev bed
ip link set bed up
hostname {NODE}
mount -t tmpfs tmpfs /run
mkdir -p /run/lib/upper /run/lib/work /run/operator/upper /run/operator/work /run/etcd
mount -t overlay -o lowerdir=/var/lib,upperdir=/run/lib/upper,workdir=/run/lib/work overlay /var/lib
mount --bind {folder}/pod-logs /var/log
hide() {{
    echo "$2" >"/run/$(basename "$1")"
    mount --bind "/run/$(basename "$1")" "/proc/sys/$1"
}}
hide vm/overcommit_memory 1
hide vm/panic_on_oom 0
hide kernel/panic 10
hide kernel/panic_on_oops 1
hide kernel/keys/root_maxkeys 1000000
hide kernel/keys/root_maxbytes 25000000
"""

OPENSSL = f"""\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
authorityKeyIdentifier = keyid
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = DNS:localhost, DNS:kubernetes.default.svc, IP:127.0.0.1, IP:{API_SERVICE}, IP:{GATEWAY}
"""

CONTAINERD = """\
version = 2
root = "{folder}/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
"""

# What is outside the cluster does not exist: a refusal would have resolvers wait for a better answer, up to 20 s.
COREFILE = """\
cluster.local:53 {{
  bind {GATEWAY}
  errors
  kubernetes cluster.local {{
    kubeconfig {folder}/inner.kubeconfig
    ttl 5
  }}
}}
.:53 {{
  bind {GATEWAY}
  errors
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""

# The operator's own init container is alpine with nslookup. This busybox says that a name is not found also where only
# one of the search domains lacks it.
INIT_CONTAINER = """\
- name: init-pytorch
  image: {{.InitContainerImage}}
  imagePullPolicy: Never
  command:
    - sh
    - -c
    - for i in $(busybox seq {{.MaxTries}}); do
        if busybox nslookup {{.MasterAddr}} 2>/dev/null | busybox grep -q '^Name:'; then exit 0; fi;
        busybox sleep 0.5;
      done;
      exit 1
"""

CNI = {
    "cniVersion": "0.4.0",
    "name": "bed",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "bed",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/addresses",
                "ranges": [[{"subnet": PODS}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ],
}


def kubelet_settings(folder: Path) -> dict[str, Any]:
    """A kubelet that manages no more of the host than the pods' own control group, and evicts nothing."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": f"{folder}/pki/ca.crt"},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup_name(folder)}",
        "enforceNodeAllocatable": [],
        "clusterDNS": [GATEWAY],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "evictionHard": {},
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": False,
        "nodeStatusUpdateFrequency": "5s",
        "resolvConf": "",
        "volumePluginDir": f"{folder}/kubelet/volume-plugins",
    }


def kubeconfig(server: str, authority: Path, token: str) -> dict[str, Any]:
    """A kubeconfig of the cluster's administrator, whole in itself."""
    trusted = base64.b64encode(authority.read_bytes()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bed", "cluster": {"server": server, "certificate-authority-data": trusted}}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "admin", "namespace": "default"}}],
        "current-context": "bed",
    }


def webhook_service() -> list[dict[str, Any]]:
    """What leads the API server to the operator's webhook, which is no pod here."""
    about = {"name": OPERATOR, "namespace": OPERATOR_NAMESPACE}
    port = {"name": "webhook", "port": 443, "targetPort": WEBHOOK_PORT}
    subset = {"addresses": [{"ip": GATEWAY}], "ports": [{"name": "webhook", "port": WEBHOOK_PORT}]}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": {"ports": [port]}},
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": about, "subsets": [subset]},
    ]


def openssl(folder: Path, *arguments: str) -> None:
    """Run openssl in the folder of the keys."""
    command = ["openssl", *arguments]
    done = subprocess.run(command, cwd=folder / "pki", stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise BedError(f"{' '.join(command)}: {done.stderr}")


def write_keys(folder: Path) -> None:
    """Make an authority, the API server's certificate, and the key that service accounts' tokens are signed with."""
    (folder / "pki/openssl.cnf").write_text(OPENSSL)
    new = ("-config", "openssl.cnf", "-x509", "-days", str(CERTIFICATE_DAYS), "-noenc")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    openssl(folder, "req", *new, *key, "-extensions=authority", "-subj=/CN=bed", "-keyout=ca.key", "-out=ca.crt")
    signed = ("-CA=ca.crt", "-CAkey=ca.key", "-extensions=server", "-subj=/CN=kube-apiserver")
    openssl(folder, "req", *new, *key, *signed, "-keyout=api.key", "-out=api.crt")
    openssl(folder, "genpkey", "-algorithm=EC", "-pkeyopt=ec_paramgen_curve:P-256", "-out=accounts.key")
    openssl(folder, "pkey", "-in=accounts.key", "-pubout", "-out=accounts.pub")


def write_configuration(folder: Path, port: int) -> None:
    """Write everything the daemons read; the cluster's address on the host has the port."""
    values = {**globals(), "folder": folder, "cni": programs()["cni"], "runc": programs()["runc"]}
    write_keys(folder)
    token = secrets.token_hex(16)
    (folder / "pki/tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    for name, server in {"kubeconfig": f"127.0.0.1:{port}", "inner.kubeconfig": f"{GATEWAY}:{API_PORT}"}.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(json.dumps(kubeconfig(f"https://{server}", folder / "pki/ca.crt", token)))
    (folder / "machine.sh").write_text(MACHINE.format(**values))
    (folder / "containerd.toml").write_text(CONTAINERD.format(**values))
    (folder / "cni/bed.conflist").write_text(json.dumps(CNI))
    (folder / "kubelet.json").write_text(json.dumps(kubelet_settings(folder)))
    (folder / "Corefile").write_text(COREFILE.format(**values))
    (folder / "init.yaml").write_text(INIT_CONTAINER)


def daemons(folder: Path) -> dict[str, list[str]]:
    """The command line of each daemon."""
    program = {name: str(path) for name, path in programs().items()}
    inner = f"--kubeconfig={folder}/inner.kubeconfig"
    pki = folder / "pki"
    return {
        "etcd": [program["etcd"], "--data-dir=/run/etcd/data", f"--listen-client-urls={ETCD}",
                 f"--advertise-client-urls={ETCD}"],
        "apiserver": [
            program["kube-apiserver"], f"--etcd-servers={ETCD}", "--bind-address=0.0.0.0", f"--secure-port={API_PORT}",
            f"--advertise-address={GATEWAY}", f"--service-cluster-ip-range={SERVICES}",
            f"--tls-cert-file={pki}/api.crt", f"--tls-private-key-file={pki}/api.key", f"--client-ca-file={pki}/ca.crt",
            f"--kubelet-client-certificate={pki}/api.crt", f"--kubelet-client-key={pki}/api.key",
            f"--token-auth-file={pki}/tokens.csv", "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/accounts.pub", f"--service-account-signing-key-file={pki}/accounts.key",
            "--kubelet-preferred-address-types=InternalIP", "--enable-aggregator-routing=true",
        ],
        "controllers": [
            program["kube-controller-manager"], inner, f"--service-account-private-key-file={pki}/accounts.key",
            f"--root-ca-file={pki}/ca.crt", "--use-service-account-credentials=true", "--leader-elect=false",
            f"--flex-volume-plugin-dir={folder}/kubelet/volume-plugins",
        ],
        "scheduler": [program["kube-scheduler"], inner, "--leader-elect=false"],
        "containerd": [program["containerd"], f"--config={folder}/containerd.toml"],
        "kubelet": [
            program["kubelet"], inner, f"--config={folder}/kubelet.json", f"--root-dir={folder}/kubelet",
            f"--cert-dir={folder}/kubelet/pki", f"--hostname-override={NODE}", f"--node-ip={GATEWAY}",
        ],
        "coredns": [program["coredns"], "-conf", f"{folder}/Corefile"],
        "operator": [
            "unshare", "--mount", "sh", "-euc", OPERATOR_PLACE.format(folder=folder),
            program["training-operator"], inner, "--enable-scheme=pytorchjob",
            f"--webhook-server-port={WEBHOOK_PORT}", "--metrics-bind-address=0", "--health-probe-bind-address=0",
            f"--pytorch-init-container-image={IMAGE}", f"--pytorch-init-container-template-file={folder}/init.yaml",
        ],
    }  # fmt: skip


# The operator's certificates are mounted into its pod, at a fixed place in /tmp: it gets a /tmp of its own. What is
# written below the old /tmp later does not show in the new one, so their folder is taken along.
OPERATOR_PLACE = """\
mkdir -p /run/operator/certificates /run/operator/upper/k8s-webhook-server/serving-certs
mount --bind {folder}/webhook /run/operator/certificates
mount -t overlay -o lowerdir=/tmp,upperdir=/run/operator/upper,workdir=/run/operator/work overlay /tmp
mount --bind /run/operator/certificates /tmp/k8s-webhook-server/serving-certs
exec "$0" "$@"
"""
