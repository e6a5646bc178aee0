"""Secrets: named, they reach the process alone; in clear, they are refused and never repeated."""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.secret_looks import is_random, mask, secret_in, why_secret
from launcher.shipped import manifests_folder
from tests.shell import STANDIN, Shell

Write = Callable[..., str]
VALUE = "correct-horse-7"

SECRETS = {
    "HF_TOKEN": VALUE,
    "hf_token": "abc",
    "apiKey": "abc123",
    "HUGGINGFACETOKEN": "abc",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MLFLOW_TRACKING_PASSWORD": "123456",
    "DB_PASS": "hunter2",
    "DB_PWD": "hunter2",
    "AWS_ACCESS_KEY_ID": "ABC",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "SESSION_COOKIE": "abc",
    "REGISTRY_AUTH": "me:abc",
    "GIT_CREDENTIALS": "me:abc",
    "HUB": "hf_abcdefghijklmnopqrstuvwx",
    "FORGE": "ghp_abcdefghijABCDEFGHIJ1234567890",
    "FORGE2": "glpat-abcdefghij0123456789",
    "MODEL_API": "sk-abcdefghijklmnopqrstuvwx",
    "MODEL_API2": "sk-proj-abc_def-ghi0123456789",
    "ACCOUNT": "AKIAIOSFODNN7EXAMPLE",
    "CHAT": "xoxb-1234567890-abcdef",
    "IDENTITY": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "DEPLOY": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----\n",
    "DATABASE_URL": "postgres://me:abc@host/db",
    "https_proxy": "http://me:abc@proxy:3128",
    "PIP_INDEX_URL": "https://me:abc@pypi.example.com/simple",
    "UPLOAD": "https://store.example.com/x?sig=abcdef0123456789",
    "STORE": "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=YWJjZGVmZ2hpag==;",
    "HEADER": "Authorization: Bearer abcdefghijklmnop",
    "SEED_TEXT": "q7Rz2XvT9mLp4KsW8dYb",
}
ORDINARY = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LD_LIBRARY_PATH": "/usr/local/cuda-12.1/lib64:/opt/aws-ofi-nccl-1.9.2/lib:/opt/amazon/efa/lib",
    "PYTHONPATH": "/home/me/src/Qwen2VLForConditionalGeneration:/home/me/lib",
    "NCCL_IB_HCA": "mlx5_0:1,mlx5_1:1,mlx5_2:1,mlx5_3:1",
    "NCCL_SOCKET_IFNAME": "^docker0,lo",
    "NCCL_TOPO_FILE": "/opt/microsoft/ndv4-topo.xml",
    "CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2",
    "NVIDIA_VISIBLE_DEVICES": "MIG-8932f937-d72c-4106-c12f-20bd9faed9f6",
    "TOKENIZERS_PARALLELISM": "false",
    "MAX_TOKENS": "2048",
    "EOS_TOKEN": "<|im_end|>",
    "IMAGE_TOKEN": "<image>",
    "NUM_KEY_VALUE_HEADS": "8",
    "COMMIT": "2231a60c0ffee2231a60c0ffee2231a60c0ffee1",
    "DATA_DIGEST": "sha256:9b2c3d4e5f60718293a4b5c6d7e8f9009b2c3d4e5f60718293a4b5c6d7e8f900",
    "WANDB_PROJECT": "llava-internlm2-7b-finetune",
    "WANDB_RUN_ID": "7k2p9xq1",
    "WANDB_MODE": "offline",
    "LOADED": "CUDA/12.1.1:GCCcore/12.3.0:OpenMPI/4.1.5-GCC-12.3.0:PyTorch/2.1.2-foss-2023a-CUDA-12.1.1",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:512,garbage_collection_threshold:0.8",
    "HF_ENDPOINT": "https://hf-mirror.com",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "http_proxy": "http://proxy.example.com:3128",
    "no_proxy": "localhost,127.0.0.1,.example.com",
    "REPOSITORY": "ssh://git@github.com/example/project.git",
    "MODEL": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B-GGUF-Q4_K_M",
    "CLASS": "InternLM2ForCausalLMWithVisionTransformerEncoderLayer",
    "SSH_KEY_PATH": "id_rsa",
    "SIGNING_KEY": "/home/me/.ssh/id_rsa",
    "GOOGLE_APPLICATION_CREDENTIALS": "/home/me/key.json",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "SSH_AUTH_SOCK": "/tmp/ssh-Xn4Rk2/agent.1",
    "XLA_FLAGS": "--xla_gpu_cuda_data_dir=/usr/local/cuda --xla_force_host_platform_device_count=8",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "DEEPSPEED": '{"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 3}}',
    "RUN_NAME": "finetune-internlm2-chat-7b-clip-336-20241201-lora-r512a256",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0xFFFFFFFFFFFFFFFF",
    "AUTHOR": "Jane Doe",
    "MONKEY": "banana",
    "SITE": 'it\'s "here" $HOME',
}


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_known_by_name_form_or_randomness(name: str) -> None:
    assert why_secret(name, SECRETS[name])


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_values_are_no_secrets(name: str) -> None:
    assert why_secret(name, ORDINARY[name]) == ""


def test_most_random_texts_are_known_as_such() -> None:
    chance = random.Random(7)
    hits = 0
    for _ in range(300):
        hits += is_random("".join(chance.choices(string.ascii_letters + string.digits, k=32)))
        hits += is_random(base64.b64encode(chance.randbytes(48)).decode())
    assert hits >= 570, hits


def test_a_masked_url_keeps_all_but_its_login() -> None:
    assert mask("git clone https://me:abc@host/x.git") == "git clone https://***@host/x.git"
    assert "hf_" not in mask("use hf_abcdefghijklmnopqrstuvwx here")


def place(shell: Shell, **profile: Any) -> None:
    values = {"profiles": {"here": {"backend": "local", **profile}}}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump(values))


def assert_unwritten(folder: Path, value: str) -> None:
    """No file of a run holds a value, beside the one in which the stand-in writes its environment down."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("started-"):
            assert value.encode() not in path.read_bytes(), path


def test_a_named_secret_reaches_the_process_and_no_file(shell: Shell, recipe: Write, own_place: Path) -> None:
    key = own_place / "wandb-key"
    key.write_text("battery staple\n")
    place(shell, secrets={"HF_TOKEN": "MY_TOKEN", "WANDB_API_KEY": str(key)})
    dry = shell("submit", recipe(), "--on", "here", "--name", "kept", "--dry-run", MY_TOKEN=VALUE)
    assert VALUE not in dry.out + dry.err and "HF_TOKEN" in dry.out
    shell("submit", recipe(), "--on", "here", "--name", "kept", MY_TOKEN=VALUE)
    assert shell.wait("kept")["state"] == "SUCCEEDED"
    for node in (0, 1):
        seen = json.loads((shell.runs / f"kept/attempts/0/started-{node}.json").read_text())
        assert (seen["HF_TOKEN"], seen["WANDB_API_KEY"]) == (VALUE, "battery staple")
    assert_unwritten(shell.runs / "kept", VALUE)
    assert_unwritten(shell.runs / "kept", "battery staple")


def test_what_is_shown_of_profiles_and_recipes_holds_names_alone(shell: Shell, recipe: Write) -> None:
    place(shell, secrets=["HF_TOKEN"])
    said = shell("submit", recipe(), "--on", "here", "--dry-run", HF_TOKEN=VALUE)
    assert "Secrets, by name alone: HF_TOKEN" in said.err and VALUE not in said.out + said.err
    assert "the secret HF_TOKEN is missing" in shell("doctor", "--on", "here", check=1).out
    assert "the secret HF_TOKEN is missing" not in shell("doctor", "--on", "here", check=None, HF_TOKEN=VALUE).out
    name = recipe(environment={"HF_TOKEN": VALUE, "SITE": "here", "DB_PASS": "${env:DB_PASS}"})
    for options in ([], ["--json"]):
        out = shell("recipes", f"./{name}", *options).out
        assert VALUE not in out and "here" in out and "${env:DB_PASS}" in out


def test_a_resume_takes_the_secret_from_the_shell_again(shell: Shell, recipe: Write) -> None:
    place(shell, secrets=["HF_TOKEN"])
    refused = shell("submit", recipe(), "--on", "here", "--name", "cut", check=2)
    assert "the secret HF_TOKEN is missing: the environment variable HF_TOKEN is not set" in refused.err
    assert not (shell.runs / "cut").exists()
    shell("submit", recipe(), "--on", "here", "--name", "cut", HF_TOKEN="before", STANDIN_STEPS="1000")
    shell.wait_step("cut", 2)
    shell("cancel", "cut")
    assert "the secret HF_TOKEN is missing" in shell("resume", "cut", check=2).err
    shell("resume", "cut", HF_TOKEN="after", STANDIN_STEPS=str(shell.status("cut")["step"] + 2))
    assert shell.wait("cut")["state"] == "SUCCEEDED"
    seen = json.loads((shell.runs / "cut/attempts/1/started-0.json").read_text())
    assert seen["HF_TOKEN"] == "after"


@pytest.mark.parametrize(
    "entry",
    [{"HF_TOKEN": "hf_abcdefghijklmnopqrstuvwx"}, ["hf_abcdefghijklmnopqrstuvwx"], ["A B"], "HF_TOKEN", {"A": 3}],
)
def test_names_are_needed_and_values_are_not_repeated(shell: Shell, recipe: Write, entry: Any) -> None:
    place(shell, secrets=entry)
    refused = shell("submit", recipe(), "--on", "here", "--dry-run", check=2)
    assert "llavajob.yaml:" in refused.err and "secrets" in refused.err and "hf_abc" not in refused.err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_secrets_in_clear_are_refused_wherever_they_stand(shell: Shell, recipe: Write, dry: list[str]) -> None:
    place(shell, environment={"WANDB_API_KEY": VALUE}, values={"paths": {"mirror": f"https://me:{VALUE}@host/"}})
    asked = recipe(environment={"PYTHONPATH": str(STANDIN), "HF_TOKEN": "${env:MY_TOKEN}", "S3_SECRET": VALUE})
    refused = shell(
        "submit", asked, "--on", "here", "--name", "no", "--set", f"environment.DB_PASSWORD={VALUE}", *dry,
        check=2, MY_TOKEN=VALUE,
    )  # fmt: skip
    lines = refused.err.splitlines()
    for where in (
        "llavajob.yaml:5: environment.WANDB_API_KEY", "llavajob.yaml:8: paths.mirror",
        "train.yaml:8: environment.HF_TOKEN", "train.yaml:9: environment.S3_SECRET",
        "--set environment.DB_PASSWORD: environment.DB_PASSWORD",
    ):  # fmt: skip
        assert any(f"{where} looks like a secret (" in line for line in lines), (where, lines)
    assert "secrets: [" in refused.err and "not_secret: [" in refused.err
    assert VALUE not in refused.err + refused.out
    assert not (shell.runs / "no").exists()


def test_a_secret_of_the_shell_is_refused_below_any_key(shell: Shell, recipe: Write) -> None:
    place(shell)
    ask = ("submit", recipe(), "--on", "here", "--dry-run")
    for key in ("environment.HUB", "paths.hub", "data.images"):
        refused = shell(*ask, "--set", f"{key}=x${{env:MY_TOKEN}}", check=2, MY_TOKEN=VALUE)
        assert f"{key} looks like a secret (of ${{env:MY_TOKEN}}, its name says so: MY_TOKEN)" in refused.err
        assert VALUE not in refused.err + refused.out
    assert shell(*ask, "--set", "environment.HUB=${env:MY_FOLDER}", MY_FOLDER="/data/hub").code == 0


@pytest.mark.parametrize("backend", ["slurm", "kubernetes"])
def test_each_backend_says_how_it_takes_secrets(shell: Shell, recipe: Write, backend: str) -> None:
    ask = ("submit", recipe(), "--on", backend, "--dry-run", "--set", f"environment.HF_TOKEN={VALUE}")
    refused = shell(*ask, check=2)
    how = {"slurm": "slurm: {secrets: [HF_TOKEN]}", "kubernetes": "kubernetes: {secrets: {HF_TOKEN: SECRET/KEY}}"}
    assert how[backend] in refused.err and VALUE not in refused.err + refused.out


@pytest.mark.parametrize("line", [f"export HF_TOKEN={VALUE}", f'env WANDB_API_KEY="{VALUE}" true'])
def test_shell_lines_hold_no_secrets(shell: Shell, recipe: Write, line: str) -> None:
    values = {"profiles": {"site": {"backend": "slurm", "slurm": {"setup": ["module load x", line]}}}}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump(values))
    refused = shell("submit", recipe(), "--on", "site", "--dry-run", check=2)
    assert "slurm.setup looks like a secret" in refused.err and VALUE not in refused.err


def test_manifests_of_a_site_hold_no_secrets(shell: Shell, recipe: Write) -> None:
    base = yaml.safe_load((manifests_folder() / "training-job.yaml").read_text())
    for replica in base["spec"]["pytorchReplicaSpecs"].values():
        replica["template"]["spec"]["containers"][0]["env"] = [{"name": "HF_TOKEN", "value": VALUE}]
    (shell.folder / "own.yaml").write_text(yaml.safe_dump(base))
    values = {"profiles": {"pods": {"backend": "kubernetes", "kubernetes": {"manifests": {"training": "own.yaml"}}}}}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump(values))
    refused = shell("submit", recipe(), "--on", "pods", "--dry-run", check=2)
    assert "own.yaml: the environment variable HF_TOKEN looks like a secret" in refused.err
    assert "secrets: {HF_TOKEN: SECRET/KEY}" in refused.err and VALUE not in refused.err + refused.out


def test_what_is_no_secret_may_be_named_so(shell: Shell, recipe: Write) -> None:
    place(shell, not_secret=["SORT_KEY"], environment={"SORT_KEY": "length"})
    shell("submit", recipe(), "--on", "here", "--name", "fine")
    assert shell.wait("fine")["state"] == "SUCCEEDED"
    seen = json.loads((shell.runs / "fine/attempts/0/started-0.json").read_text())
    assert seen["SORT_KEY"] == "length"


def test_a_secret_is_named_or_set_but_not_both(shell: Shell, recipe: Write) -> None:
    place(shell, secrets=["HF_HOME"], environment={"HF_HOME": "/data/hub/files"})
    refused = shell("submit", recipe(), "--on", "here", "--dry-run", check=2, HF_HOME="/data/other")
    assert "environment.HF_HOME is named as a secret as well; leave it out here" in refused.err


def test_a_wrong_type_is_said_without_the_value(shell: Shell, recipe: Write) -> None:
    place(shell, environment={"DB_PASSWORD": 8675309})
    refused = shell("submit", recipe(), "--on", "here", "--dry-run", check=2)
    assert "environment.DB_PASSWORD is" in refused.err and "8675309" not in refused.err


def test_a_run_of_an_earlier_version_goes_on_with_a_warning(shell: Shell, recipe: Write) -> None:
    place(shell)
    shell("submit", recipe(), "--on", "here", "--name", "old", STANDIN_STEPS="1000")
    shell.wait_step("old", 2)
    shell("cancel", "old")
    path = shell.runs / "old/run.json"
    record = json.loads(path.read_text())
    del record["run_id"]
    record["recipe_tree"]["environment"]["HF_TOKEN"] = VALUE
    path.write_text(json.dumps(record))
    said = shell("resume", "old", STANDIN_STEPS=str(shell.status("old")["step"] + 2))
    assert "Warning: " in said.err and "environment.HF_TOKEN looks like a secret" in said.err
    assert VALUE not in said.err
    assert shell.wait("old")["state"] == "SUCCEEDED"


def test_long_texts_are_looked_at_once() -> None:
    """A pattern that begins anew at each letter would take hours for these."""
    for text in ("x" * 10**6, "a1" * 500_000, "a+b-c." * 150_000, "://a" * 200_000):
        assert secret_in(text) == "" and mask(text) == text
