"""Scripts that launch lmjax on many machines, with stand-ins for what they call."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SCRIPTS = Path(__file__).parents[1] / "scripts"
FLAG = "--xla_gpu_enable_latency_hiding_scheduler"

Launch = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Runs a script; stubs are shell lines by the name of the command they stand for.

    Each stub first writes its arguments to a file `calls`, one a line.
    """

    def run(script: str, *arguments: str, **options: Any) -> Any:
        stubs, variables = options.get("stubs", {}), options.get("variables", {})
        folder = tmp_path / "stubs"
        folder.mkdir(exist_ok=True)
        for name, lines in stubs.items():
            told = f'printf "%s\\n" "{name} ${{*@Q}}" >> {tmp_path}/calls'
            (folder / name).write_text(f"#!/usr/bin/env bash\n{told}\n{lines}\n")
            (folder / name).chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS",)}
        kept["PATH"] = f"{folder}:{kept['PATH']}"
        root = {"LMJAX_ROOT": str(SCRIPTS.parent)}
        return subprocess.run(
            ["bash", str(SCRIPTS / script), *arguments],
            env=kept | root | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def _calls(folder: Path) -> list[str]:
    file = folder / "calls"
    return file.read_text().splitlines() if file.exists() else []


POD = ["--tpu", "pod", "--zone", "z", "--dry-run"]


def test_a_pod_gets_the_command_on_all_workers_and_creates_nothing(
    launch: Launch, tmp_path: Path
) -> None:
    """Arguments with spaces come through two shells as they were."""
    fields = ["--workdir", "runs/a b", "--config.train.budget=3 epochs"]
    shown = launch("launch_tpu_pod.sh", *POD, "--", *fields)
    assert shown.returncode == 0, shown.stderr
    (line,) = shown.stdout.splitlines()
    assert line.startswith("'gcloud' 'compute' 'tpus' 'tpu-vm' 'ssh' 'pod'")
    assert "'--worker=all'" in line
    assert "'--zone=z'" in line
    words = subprocess.run(
        ["bash", "-c", f'printf "%s\\n" {line}'], capture_output=True, text=True
    ).stdout.splitlines()
    command = next(word for word in words if word.startswith("--command="))
    remote = command.removeprefix("--command=").replace("exec bash", "echo")
    remote = remote.replace("cd 'lmjax'", "true")
    heard = subprocess.run(["bash", "-c", remote], capture_output=True, text=True)
    assert heard.stdout == f"scripts/train.sh {' '.join(fields)}\n"
    assert "'runs/a b'" in remote
    assert not _calls(tmp_path)


def test_a_pod_is_created_and_filled_when_asked(launch: Launch) -> None:
    more = ["--create", "v5litepod-16", "--spot", "--copy", "--"]
    shown = launch("launch_tpu_pod.sh", *POD, *more)
    verbs = [line.split()[4] for line in shown.stdout.splitlines() if "gcloud" in line]
    assert verbs == ["'create'", "'scp'", "'ssh'", "'ssh'"]
    assert "'--accelerator-type=v5litepod-16'" in shown.stdout
    assert "'--spot'" in shown.stdout


def test_slices_run_at_once_and_a_failure_is_told(
    launch: Launch, tmp_path: Path
) -> None:
    gcloud = f'[[ "$*" != *" two "* ]] || exit 3; sleep 0.1; echo >> {tmp_path}/done'
    ran = launch(
        "launch_tpu_pod.sh", "--tpu", "one,two", "--", stubs={"gcloud": gcloud}
    )
    assert ran.returncode == 3
    assert len(_calls(tmp_path)) == 2
    assert (tmp_path / "done").exists(), "it did not wait for the other slice"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the TPU"),
        (["--tpu"], "needs a value"),
        (["--tpu", "a", "--config", "x"], "stands after --"),
        (["--tpu", "a,b", "--create", "v4-8"], "created together"),
    ],
)
def test_slips_are_told_before_anything_is_done(
    launch: Launch, arguments: list[str], message: str
) -> None:
    refused = launch("launch_tpu_pod.sh", *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_NTASKS": "1"}, [f"{FLAG}=true"]),
        ({"SLURM_NTASKS": "4"}, [f"{FLAG}=true", "--config.parallel.coordinator=auto"]),
        ({"XLA_FLAGS": f"{FLAG}=false"}, [f"{FLAG}=false"]),
        ({"XLA_FLAGS": "--xla_other=1"}, [f"--xla_other=1 {FLAG}=true"]),
    ],
)
def test_a_slurm_job_is_one_step_that_knows_its_peers(
    launch: Launch, variables: dict[str, str], expected: list[str]
) -> None:
    shown = launch(
        "launch_slurm.sh", "--dry-run", "--workdir", "w", variables=variables
    )
    assert shown.returncode == 0, shown.stderr
    assert "'-m' 'lmjax.main'" in shown.stdout
    assert shown.stdout.rstrip().endswith("'--workdir' 'w'")
    assert all(part in shown.stdout for part in expected)
    assert shown.stdout.count(FLAG) == 1
    several = "parallel.coordinator" in shown.stdout
    assert several == (variables.get("SLURM_NTASKS") == "4")


@pytest.mark.parametrize(
    ("srun", "variables", "status", "requeued"),
    [
        ("echo 'stopped by SIGUSR1 after step 9, which is saved'", {}, 0, True),
        ("echo 'all is done'", {}, 0, False),
        ("exit 76", {}, 0, True),
        ("exit 76", {"SLURM_RESTART_COUNT": "10"}, 76, False),
        ("exit 1", {}, 1, False),
        ("exit 76", {"LMJAX_REQUEUE_AFTER": "60"}, 76, False),
    ],
)
def test_a_slurm_job_that_was_cut_short_is_queued_again(
    srun: str,
    variables: dict[str, str],
    status: int,
    requeued: bool,
    launch: Launch,
    tmp_path: Path,
) -> None:
    stubs = {"srun": srun, "scontrol": ""}
    given = {"SLURM_JOB_ID": "7", "LMJAX_REQUEUE_AFTER": "0"} | variables
    ran = launch("launch_slurm.sh", "--workdir", "w", stubs=stubs, variables=given)
    assert ran.returncode == status, ran.stderr
    assert ("scontrol 'requeue' '7'" in _calls(tmp_path)) == requeued


def test_slurm_gives_notice_in_time() -> None:
    text = (SCRIPTS / "launch_slurm.sh").read_text()
    assert {"#SBATCH --signal=USR1@120", "#SBATCH --requeue"} <= set(text.splitlines())


def test_the_jobset_asks_for_whole_slices() -> None:
    jobset = yaml.safe_load((SCRIPTS / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    assert jobset["spec"]["network"]["enableDNSHostnames"]
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    limits = container["resources"]["limits"]
    assert spec["parallelism"] == spec["completions"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = spec["parallelism"] * limits["google.com/tpu"]
    assert chips == int(rows) * int(columns)
    assert limits == container["resources"]["requests"]
    assert "--config.parallel.coordinator=auto" in container["args"][0]


@pytest.mark.parametrize(
    ("says", "status", "expected"),
    [("stopped by SIGTERM after step 3", 0, 75), ("done", 0, 0), ("lost", 76, 76)],
)
def test_a_pod_of_the_jobset_that_was_stopped_asks_to_be_started_again(
    says: str, status: int, expected: int, tmp_path: Path
) -> None:
    jobset = yaml.safe_load((SCRIPTS / "jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    script = job["template"]["spec"]["containers"][0]["args"][0]
    script = script.replace("/tmp/lmjax.log", str(tmp_path / "log"))
    stub = f'python() {{ echo "{says}"; sleep 0.1; return {status}; }}\n'
    ran = subprocess.run(["bash", "-c", stub + script], capture_output=True)
    assert ran.returncode == expected
