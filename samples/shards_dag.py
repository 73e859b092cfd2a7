"""An Airflow DAG that launches one manifest by four mapped tasks, each a shard of it.

All workers need the same folder, with the manifest in it; the ledgers lie beside the manifest. A
task that is tried again goes on with its shard, and starts no row twice. Where DES is, and its
token, come from the worker's environment.

Written for Airflow 3.
"""

from __future__ import annotations

import os

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

SHARDS = 4
MANIFEST = os.environ.get("DESLAUNCH_SAMPLE_MANIFEST", "/data/night.csv")

with DAG("deslaunch_night", schedule=None, catchup=False):
    launch = BashOperator.partial(
        task_id="launch",
        bash_command='deslaunch run "$MANIFEST" --shard "$SHARD" --resume',
        append_env=True,
        retries=2,
    ).expand(env=[{"MANIFEST": MANIFEST, "SHARD": f"{n}/{SHARDS}"} for n in range(1, SHARDS + 1)])

    results = BashOperator(
        task_id="results",
        bash_command=(
            'base="${MANIFEST%.csv}" && '
            f'deslaunch results "$base".*-of-{SHARDS}.ledger.jsonl -o "$base.results.csv"'
        ),
        env={"MANIFEST": MANIFEST},
        append_env=True,
        trigger_rule="all_done",  # also of shards that failed: they say what became of their rows
    )

    launch.set_downstream(results)
